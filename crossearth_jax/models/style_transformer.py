"""Arbitrary style transfer network of Ghiasi et al. (arXiv 1705.06830) in two sizes.

It has three contracting convolutions, five residual blocks and three expanding convolutions. The scales and shifts of
thirteen instance norms are linear functions of a style code. The paper's network (style-augmentation) has widths of 32,
64 and 128, the small Magenta network of 8, 16 and 32. The small one has no instance norm after the contracting
convolutions.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from einops import repeat
from flax import nnx
from jaxtyping import Array, Float

EPSILON = 1e-5  # of the instance norms, in both networks


@dataclasses.dataclass(frozen=True, kw_only=True)
class StyleTransformerConfig:
    """Size of the network; the defaults are those of the paper."""

    widths: tuple[int, int, int] = (32, 64, 128)  # of the three contracting convolutions
    residual_blocks: int = 5
    contract_norm: bool = True  # instance norm after the contracting convolutions
    code_size: int = 100


def instance_norm(images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Standardise every channel of every image over its pixels, with statistics in float32."""
    x = images.astype(jnp.float32)
    mean = jnp.mean(x, axis=(1, 2), keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), axis=(1, 2), keepdims=True)
    return ((x - mean) * jax.lax.rsqrt(variance + EPSILON)).astype(images.dtype)


def enlarge(images: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Double height and width by repeating pixels."""
    return repeat(images, "b h w c -> b (h 2) (w 2) c")


def _conv(inputs: int, outputs: int, kernel: int, stride: int, dtype: str, rngs: nnx.Rngs) -> nnx.Conv:
    """Create a convolution with reflection padding."""
    return nnx.Conv(
        inputs, outputs, (kernel, kernel), strides=stride, padding="REFLECT", dtype=jnp.dtype(dtype), rngs=rngs
    )


class StyledConv(nnx.Module):
    """Convolution and instance norm, whose scale and shift are linear functions of the style code."""

    def __init__(self, inputs: int, outputs: int, kernel: int, code_size: int, dtype: str, *, rngs: nnx.Rngs):
        self.conv = _conv(inputs, outputs, kernel, 1, dtype, rngs)
        ones = nnx.initializers.ones_init()
        self.scale = nnx.Linear(code_size, outputs, bias_init=ones, dtype=jnp.dtype(dtype), rngs=rngs)
        self.shift = nnx.Linear(code_size, outputs, dtype=jnp.dtype(dtype), rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], codes: Float[Array, "b k"]) -> Float[Array, "b h w d"]:
        """Return the styled feature map."""
        return self.restyle(self.conv(x), codes)

    def restyle(self, x: Float[Array, "b h w d"], codes: Float[Array, "b k"]) -> Float[Array, "b h w d"]:
        """Standardise every channel, then apply the scale and shift that belong to the style code."""
        scale, shift = self.scale(codes)[:, None, None], self.shift(codes)[:, None, None]
        return instance_norm(x) * scale + shift


class ResidualBlock(nnx.Module):
    """Two styled convolutions with a residual connection; no activation after the sum."""

    def __init__(self, width: int, code_size: int, dtype: str, *, rngs: nnx.Rngs):
        self.conv1 = StyledConv(width, width, 3, code_size, dtype, rngs=rngs)
        self.conv2 = StyledConv(width, width, 3, code_size, dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], codes: Float[Array, "b k"]) -> Float[Array, "b h w c"]:
        """Return the sum of the input and the styled branch."""
        return x + self.conv2(nnx.relu(self.conv1(x, codes)), codes)


class StyleTransformer(nnx.Module):
    """Restyle images by style codes."""

    def __init__(self, config: StyleTransformerConfig, dtype: str = "float32", *, rngs: nnx.Rngs):
        self.config = config
        w1, w2, w3 = config.widths
        code = config.code_size
        self.contract = nnx.List(
            [
                _conv(3, w1, 9, 1, dtype, rngs),
                _conv(w1, w2, 3, 2, dtype, rngs),
                _conv(w2, w3, 3, 2, dtype, rngs),
            ]
        )
        self.residual = nnx.List([ResidualBlock(w3, code, dtype, rngs=rngs) for _ in range(config.residual_blocks)])
        self.expand = nnx.List(
            [
                StyledConv(w3, w2, 3, code, dtype, rngs=rngs),
                StyledConv(w2, w1, 3, code, dtype, rngs=rngs),
                StyledConv(w1, 3, 9, code, dtype, rngs=rngs),
            ]
        )

    def __call__(self, images: Float[Array, "b h w 3"], codes: Float[Array, "b k"]) -> Float[Array, "b h4 w4 3"]:
        """Restyle images in [0, 1]. The output is in [0, 1] and has sides of 4 ceil(side / 4).

        The additional rows and columns are at the bottom and at the right, so pixel (i, j) stays at (i, j).
        """
        x = images
        for conv in self.contract:
            x = self.contracted(conv(x))
        for block in self.residual:
            x = block(x, codes)
        x = nnx.relu(self.expand[0](enlarge(x), codes))
        x = nnx.relu(self.expand[1](enlarge(x), codes))
        return nnx.sigmoid(self.expand[2](x, codes))

    def contracted(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Apply what follows a contracting convolution: the optional instance norm, then ReLU."""
        return nnx.relu(instance_norm(x) if self.config.contract_norm else x)
