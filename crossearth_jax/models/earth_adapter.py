"""Earth-Adapter: small networks that refine the patch features after every block, in some blocks by frequency bands.

Hu et al., "Earth-Adapter: Bridge the Geospatial Domain Gaps with Mixture of Frequency Adaptation" (AAAI 2026, arXiv
2504.06220).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from crossearth_jax.config import ModelConfig, UserError
from crossearth_jax.models.layers import linear, stack
from crossearth_jax.models.parameters import Distribution, parameter
from crossearth_jax.models.vit import Adapter
from crossearth_jax.ops.resize import apply_matrices


class Expert(nnx.Module):
    """Two linear layers with a ReLU and few hidden units between them."""

    def __init__(self, width: int, hidden: int, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        self.down = linear(width, hidden, dtype, axes=("embed", "rank"), rngs=rngs)
        self.up = linear(hidden, width, dtype, axes=("rank", "embed"), rngs=rngs)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Transform every token independently; the result is float32."""
        return self.up(nnx.relu(self.down(x))).astype(jnp.float32)


class FrequencyExperts(nnx.Module):
    """The experts of the low and high frequencies, and the router that weights the three experts for every patch."""

    def __init__(self, width: int, hidden: int, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        self.low, self.high = (Expert(width, hidden, dtype, rngs=rngs) for _ in range(2))
        self.router = linear(width, 3, jnp.dtype(jnp.float32), axes=("embed", None), rngs=rngs)


class EarthAdapter(Adapter):
    """Add the output of an expert to the patches after every block.

    In `frequency_blocks` there are two more experts, of the low and the high frequencies of the feature map. A softmax
    of a linear layer of the features weights the three outputs. Initial values are the authors', so the initial
    function differs from that of the frozen backbone.
    """

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        sizes, width, depth = config.earth_adapter, config.vit.width, config.vit.depth
        blocks = sizes.frequency_blocks
        if not blocks or not all(-depth <= block < depth for block in blocks):
            raise UserError(
                f"model.earth_adapter.frequency_blocks are {blocks}, expected one or more of the {depth} blocks, "
                "from 0 or backwards from -1"
            )
        self.cutoff, self.frequency_blocks = sizes.cutoff, tuple(sorted({block % depth for block in blocks}))
        self.others = 1 + config.vit.registers  # tokens before the patches
        self.spatial = stack(lambda rngs: Expert(width, sizes.hidden, dtype, rngs=rngs), depth, rngs=rngs)
        self.frequency = stack(
            lambda rngs: FrequencyExperts(width, sizes.hidden, dtype, rngs=rngs), len(self.frequency_blocks), rngs=rngs
        )
        self.scale = parameter((depth,), Distribution("constant", sizes.scale))

    def per_block(self) -> tuple[Any, ...]:
        """Return for each block whether it uses frequencies, the scale, and its experts.

        A block without frequencies gets the experts of another block, which it does not use.
        """
        blocks = np.arange(self.scale.shape[0])
        slots = np.searchsorted(self.frequency_blocks, blocks) % len(self.frequency_blocks)
        frequency = jax.tree.map(lambda x: x[slots], self.frequency)
        return jnp.isin(blocks, np.asarray(self.frequency_blocks)), self.scale[...], self.spatial, frequency

    def refine(self, x: Float[Array, "b n c"], inputs: tuple[Any, ...], rows: int) -> Float[Array, "b n c"]:
        """Add the weighted sum of the experts' outputs, times the scale of the block."""
        uses_frequencies, scale, spatial, frequency = inputs

        def mixed() -> Float[Array, "b n c"]:
            low = low_frequencies(rearrange(x[:, self.others :], "b (h w) c -> b h w c", h=rows), self.cutoff)
            low = jnp.pad(rearrange(low, "b h w c -> b (h w) c"), [(0, 0), (self.others, 0), (0, 0)])
            outputs = jnp.stack([spatial(x), frequency.low(low), frequency.high(x - low)], axis=-1)
            return jnp.einsum("bnce,bne->bnc", outputs, jax.nn.softmax(frequency.router(x)))

        return x + scale * jax.lax.cond(uses_frequencies, mixed, lambda: spatial(x))


def low_frequencies(x: Float[Array, "b h w c"], cutoff: float) -> Float[Array, "b h w c"]:
    """Return the part of a feature map with frequencies from -n to n - 1 along both axes.

    n is `cutoff` / 2 of the shorter side, rounded down. As in the authors' code the band is not symmetric, and the real
    part is returned. The filter is a product with small matrices, which unlike a Fourier transform needs no
    communication between devices.
    """
    height, width = x.shape[1:3]
    n = int(min(height, width) * cutoff // 2)
    rows, columns = (_band(size, n) for size in (height, width))
    return apply_matrices(x, rows.real, columns.real) - apply_matrices(x, rows.imag, columns.imag)


def _band(size: int, n: int) -> npt.NDArray[np.complex128]:
    """Return the matrix that keeps the frequencies from -n to n - 1 of a signal."""
    waves = np.exp(2j * np.pi * np.outer(np.arange(size), np.arange(-n, n)) / size)
    return np.asarray(waves @ waves.conj().T / size, np.complex128)
