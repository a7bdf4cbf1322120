"""Low-rank updates of the frozen linear layers of every block: LoRA, and SoMA, which differs in the initial values.

LoRA: Hu et al. (arXiv 2106.09685). SoMA: Yun et al., "Singular Value Decomposed Minor Components Adaptation" (CVPR
2025, arXiv 2412.04077).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from crossearth_jax.config import ModelConfig, UserError
from crossearth_jax.models.parameters import ZEROS, Distribution, parameter
from crossearth_jax.models.vit import Adapter, Block

PARTS = {"qkv": 3, "w12": 2}  # layers that hold several matrices side by side; each has its own update


class Factors(nnx.Module):
    """The two factors of the updates of one layer, stacked over the adapted blocks."""

    def __init__(self, layer: nnx.Linear, name: str, blocks: int, rank: int, initial: Distribution | None):
        parts = PARTS.get(name, 1)
        inputs, outputs = layer.kernel.get_metadata("axes")
        down, up = (blocks, parts, layer.in_features, rank), (blocks, parts, rank, layer.out_features // parts)
        initial = initial or Distribution("uniform", layer.in_features**-0.5)
        self.down = parameter(down, initial, ("layers", None, inputs, "rank"))
        self.up = parameter(up, ZEROS, ("layers", None, "rank", outputs))


class AdaptedLinear(nnx.Module):
    """A frozen linear layer and its update."""

    def __init__(self, layer: nnx.Linear, down: Float[Array, "p i r"], up: Float[Array, "p r o"]):
        self.layer, self.down, self.up = layer, nnx.data(down), nnx.data(up)

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b po"]:
        """Return the sum of the layer's output and of the update."""
        output = self.layer(x)
        x, down, up = (array.astype(output.dtype) for array in (x, self.down, self.up))
        hidden = jnp.einsum("...i,pir->...pr", x, down)
        return output + rearrange(jnp.einsum("...pr,pro->...po", hidden, up), "... p o -> ... (p o)")


class Lora(Adapter):
    """Add the product of two factors, times `scale`, to every linear layer of the blocks from `first_block` on.

    The second factors are zero at first, so that the initial function is that of the frozen backbone.
    """

    initial: Distribution | None = None  # of the first factors; None: PyTorch's, as in the authors' code

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        self.config, depth = config.lora, config.vit.depth
        if config.lora.first_block >= depth:
            raise UserError(f"model.lora.first_block is {config.lora.first_block}, expected less than {depth} blocks")
        if config.lora.rank > config.vit.width:
            raise UserError(
                f"model.lora.rank is {config.lora.rank}, expected at most the width of the backbone, {config.vit.width}"
            )
        blocks = depth - config.lora.first_block
        layers = linear_layers(Block(config.vit, dtype, rngs=rngs))
        self.layers = nnx.Dict(
            {name: Factors(layer, name, blocks, config.lora.rank, self.initial) for (_, name), layer in layers.items()}
        )

    def per_block(self) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Return the factors of each layer; those of blocks before `first_block` are zero."""

        def padded(factor: nnx.Param) -> jax.Array:
            return jnp.pad(factor[...], [(self.config.first_block, 0), (0, 0), (0, 0), (0, 0)])

        return {
            name: (padded(factors.down), self.config.scale * padded(factors.up))
            for name, factors in self.layers.items()
        }

    def adapt(self, block: Block, inputs: dict[str, tuple[jax.Array, jax.Array]]) -> Block:
        """Return the block with its linear layers replaced by adapted ones."""
        for (part, name), layer in linear_layers(block).items():
            setattr(getattr(block, part), name, AdaptedLinear(layer, *inputs[name]))
        return block


class Soma(Lora):
    """Train the minor singular components of the layers; the frozen kernels hold the rest.

    Both factors are zero until `minor_components` takes them from the frozen weights.
    """

    initial = ZEROS


def minor_components(config: ModelConfig, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Split the kernels of the adapted layers into factors of their smallest singular components and a residual.

    Kernel = residual + `scale` * down * up, so that the function of the network is unchanged up to rounding.

    Args:
      config: the model.
      params: all kernels of the blocks.

    Returns:
      The new values of these kernels and of the factors, by parameter name.
    """
    rank, scale, first = config.lora.rank, config.lora.scale, config.lora.first_block
    split: dict[str, np.ndarray] = {}
    for name in params:
        if not (match := re.fullmatch(r"backbone/blocks/(?:attention|mlp)/(\w+)/kernel", name)):
            continue
        kernels = np.array(params[name])
        matrices = rearrange(kernels[first:], "l i (p o) -> l p i o", p=PARTS.get(match[1], 1))
        factors = [[_smallest(matrix.astype(np.float64), rank) for matrix in block] for block in matrices]
        down, up = (np.asarray([[pair[k] for pair in block] for block in factors]) / scale**0.5 for k in range(2))
        down, up = down.astype(np.float32), up.astype(np.float32)
        kernels[first:] -= scale * rearrange(down.astype(np.float64) @ up, "l p i o -> l i (p o)")
        split |= {name: kernels, f"adapter/layers/{match[1]}/down": down, f"adapter/layers/{match[1]}/up": up}
    return split


def _smallest(matrix: Float[np.ndarray, "i o"], rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Return factors (i, rank), (rank, o) of the smallest singular components; each has half of the singular values.

    The eigenvectors of the smaller Gram matrix are singular vectors and take a fraction of the time of a full
    decomposition; in float64 they are accurate enough.
    """
    if matrix.shape[0] > matrix.shape[1]:
        up, down = _smallest(matrix.T, rank)
        return down.T, up.T
    _, vectors = scipy.linalg.eigh(matrix @ matrix.T, subset_by_index=(0, rank - 1))
    rows = vectors.T @ matrix
    root = np.sqrt(np.maximum(np.linalg.norm(rows, axis=1), np.finfo(np.float32).tiny))
    return vectors * root, rows / root[:, None]


def linear_layers(block: Block) -> dict[tuple[Any, ...], nnx.Linear]:
    """Return the linear layers of a block by path, such as ("attention", "qkv")."""
    return {path: node for path, node in nnx.iter_graph(block) if isinstance(node, nnx.Linear)}
