"""Mask2Former's pixel decoder: multi-scale deformable attention over three levels, then mask features.

Cheng et al. (arXiv 2112.01527); deformable attention of Zhu et al. (arXiv 2010.04159). Levels are ordered from
low to high resolution: strides 32, 16, 8. Stride 4 joins only after the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from crossearth_jax.config import HeadConfig, ViTConfig
from crossearth_jax.models.layers import Mlp, conv, group_norm, layer_norm, linear, stack
from crossearth_jax.ops.deformable_attention import deformable_attention
from crossearth_jax.ops.resize import resize_bilinear, scale_bilinear
from crossearth_jax.ops.sine_encoding import sine_encoding
from crossearth_jax.runtime import parallel

LEVELS = 3

# (height, width) of every level.
Sizes = Sequence[Sequence[int]]


class PixelFeatures(NamedTuple):
    """What the mask decoder looks at."""

    memories: tuple[Float[Array, "b _ _ d"], ...]  # strides 32, 16, 8
    masks: Float[Array, "b h w d"]  # stride 4; a query's mask is its dot product with them


class ConvNorm(nnx.Module):
    """Convolution and group norm, which the pixel decoder calls apart."""

    def __init__(self, convolution: nnx.Conv, config: HeadConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        self.conv = convolution
        self.norm = group_norm(config.width, config.groups, rngs=rngs)


class DeformableAttention(nnx.Module):
    """Self-attention over all levels that samples a few points per head, level and query."""

    def __init__(self, config: HeadConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        self.heads, self.points = config.heads, config.points
        width, samples = config.width, config.heads * LEVELS * config.points
        self.sampling_offsets = linear(width, 2 * samples, dtype, rngs=rngs)
        self.attention_weights = linear(width, samples, dtype, rngs=rngs)
        self.value_proj = linear(width, width, dtype, rngs=rngs)
        self.output_proj = linear(width, width, dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"], position: Float[Array, "n d"], sizes: Sizes) -> Float[Array, "b n d"]:
        """Averages values around each token; positions steer where it looks but are not averaged."""
        query = x + position
        value = rearrange(self.value_proj(x), "b n (k d) -> b n k d", k=self.heads)
        axes = {"k": self.heads, "l": LEVELS, "p": self.points}
        offsets = rearrange(self.sampling_offsets(query), "b n (k l p xy) -> b n k l p xy", xy=2, **axes)
        # Offsets are in pixels of the level looked into.
        extents = np.array(sizes, np.float32)[:, None, ::-1]
        locations = offsets.astype(jnp.float32) / extents + _reference_points(sizes)[:, None, None, None]
        weights = jax.nn.softmax(
            rearrange(self.attention_weights(query), "b n (k s) -> b n k s", k=self.heads).astype(jnp.float32)
        )
        weights = rearrange(weights, "b n k (l p) -> b n k l p", l=LEVELS)
        sampled = deformable_attention(value, sizes, locations, weights)
        return self.output_proj(rearrange(sampled, "b n k d -> b n (k d)"))


def _reference_points(sizes: Sizes) -> Float[np.ndarray, "n 2"]:
    """Relative (x, y) of every token's own pixel centre."""
    grids = []
    for height, width in sizes:
        y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
        grids.append(np.stack([x, y], axis=-1).reshape(-1, 2))
    return np.concatenate(grids).astype(np.float32)


class EncoderLayer(nnx.Module):
    """Post-norm layer: deformable self-attention, then a feed-forward part."""

    def __init__(self, config: HeadConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        self.attention = DeformableAttention(config, dtype, rngs=rngs)
        self.norm1 = layer_norm(config.width, 1e-5, rngs=rngs)
        self.mlp = Mlp(config.width, config.encoder_mlp_width, dtype, rngs=rngs)
        self.norm2 = layer_norm(config.width, 1e-5, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"], position: Float[Array, "n d"], sizes: Sizes) -> Float[Array, "b n d"]:
        """Transforms the tokens of all levels, which stay in float32."""
        x = self.norm1(x + self.attention(x, position, sizes))
        return self.norm2(x + self.mlp(x))


class PixelDecoder(nnx.Module):
    """Four maps of patch features to three memories and the mask features."""

    def __init__(self, config: HeadConfig, backbone: ViTConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        width, inputs = config.width, backbone.width
        self.pyramid, self.dtype = backbone.pyramid, dtype

        def conv_norm(inputs: int, kernel: int, use_bias: bool) -> ConvNorm:
            convolution = conv(inputs, width, kernel, dtype, use_bias=use_bias, rngs=rngs)
            return ConvNorm(convolution, config, dtype, rngs=rngs)

        self.input_convs = nnx.List([conv_norm(inputs, 1, True) for _ in range(LEVELS)])
        self.level_encoding = nnx.Param(jnp.zeros((LEVELS, width)))
        self.encoder = stack(lambda rngs: EncoderLayer(config, dtype, rngs=rngs), config.encoder_layers, rngs=rngs)
        self.lateral_conv = conv_norm(inputs, 1, False)
        self.output_conv = conv_norm(width, 3, False)
        self.mask_feature = conv(width, width, 1, dtype, rngs=rngs)

    def __call__(self, levels: tuple[Float[Array, "b h w c"], ...]) -> PixelFeatures:
        """Fuses the levels.

        Args:
          levels: patch features of the four feature blocks, all at the patch grid. A 1x1 convolution and a resize
            commute, so each is brought to its place in the pyramid after its projection, with a quarter of the
            channels.
        """
        *maps, lateral = (
            block.norm(scale_bilinear(block.conv(level), factor))
            for block, level, factor in zip(
                [*self.input_convs, self.lateral_conv], reversed(levels), reversed(self.pyramid), strict=True
            )
        )
        memories = self.encode(maps)
        enlarged = resize_bilinear(memories[-1].astype(self.dtype), lateral.shape[1:3])
        fused = nnx.relu(self.output_conv.norm(self.output_conv.conv(lateral + enlarged)))
        return PixelFeatures(memories, self.mask_feature(fused))

    def encode(self, maps: list[Float[Array, "b _ _ d"]]) -> tuple[Float[Array, "b _ _ d"], ...]:
        """Lets the tokens of all levels look at each other."""
        sizes = tuple(x.shape[1:3] for x in maps)
        tokens = jnp.concatenate([rearrange(x, "b h w d -> b (h w) d") for x in maps], axis=1)
        position = self.positions(sizes)
        tokens, _ = jax.lax.scan(
            lambda x, layer: (layer(parallel.split_by_batch(x), position, sizes), None), tokens, self.encoder
        )
        parts = jnp.split(tokens, np.cumsum([h * w for h, w in sizes])[:-1], axis=1)
        return tuple(rearrange(x, "b (h w) d -> b h w d", h=h) for x, (h, _) in zip(parts, sizes, strict=True))

    def positions(self, sizes: Sizes) -> Float[Array, "n d"]:
        """Sine encoding plus the learnt vector of the level, for the tokens of all levels."""
        features = self.level_encoding.shape[-1]
        encodings = [
            rearrange(sine_encoding(height, width, features), "h w d -> (h w) d") + self.level_encoding[level]
            for level, (height, width) in enumerate(sizes)
        ]
        return jnp.concatenate(encodings)
