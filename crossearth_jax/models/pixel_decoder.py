"""Mask2Former's pixel decoder: multi-scale deformable attention over three levels, then mask features.

Cheng et al. (arXiv 2112.01527), with the deformable attention of Zhu et al. (arXiv 2010.04159). Levels are ordered
from low to high resolution: strides 32, 16, 8. The level of stride 4 is added after the encoder.
"""

from __future__ import annotations

import math
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
from crossearth_jax.models.parameters import ZEROS, Distribution, parameter, xavier_uniform
from crossearth_jax.models.torch_names import CONV, LINEAR, SAME, affine, rule
from crossearth_jax.ops.deformable_attention import deformable_attention
from crossearth_jax.ops.resize import resize_bilinear, scale_bilinear
from crossearth_jax.ops.sine_encoding import sine_encoding
from crossearth_jax.runtime import parallel

LEVELS = 3
EMBEDDING = Distribution("normal", 1.0)  # initial values of the learnt vectors of levels and queries

# (height, width) of every level.
Sizes = Sequence[Sequence[int]]


def caffe(inputs: int) -> Distribution:
    """Return the distribution of Caffe's "Xavier" filler, from which Mask2Former's convolutions are drawn."""
    return Distribution("uniform", math.sqrt(3 / inputs))


class PixelFeatures(NamedTuple):
    """Output of the pixel decoder, input of the mask decoder."""

    memories: tuple[Float[Array, "b _ _ d"], ...]  # strides 32, 16, 8
    masks: Float[Array, "b h w d"]  # stride 4; a query's mask logits are the dot products with its mask embedding


class ConvNorm(nnx.Module):
    """Convolution and group norm; the pixel decoder calls them separately."""

    def __init__(self, convolution: nnx.Conv, config: HeadConfig, *, rngs: nnx.Rngs):
        self.conv = convolution
        self.norm = group_norm(config.width, config.groups, rngs=rngs)


class DeformableAttention(nnx.Module):
    """Self-attention over all levels by a few sampling points per head, level and query."""

    def __init__(self, config: HeadConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        self.heads, self.points = config.heads, config.points
        width, samples = config.width, config.heads * LEVELS * config.points
        axes = ("embed", None)
        rays = Distribution("constant", ray_offsets(config.heads, config.points))
        self.sampling_offsets = linear(width, 2 * samples, dtype, kernel=ZEROS, bias=rays, axes=axes, rngs=rngs)
        self.attention_weights = linear(width, samples, dtype, kernel=ZEROS, bias=ZEROS, axes=axes, rngs=rngs)
        projection = xavier_uniform(width, width)
        self.value_proj, self.output_proj = (
            linear(width, width, dtype, kernel=projection, bias=ZEROS, axes=axes, rngs=rngs) for _ in range(2)
        )

    def __call__(self, x: Float[Array, "b n d"], position: Float[Array, "n d"], sizes: Sizes) -> Float[Array, "b n d"]:
        """Average values sampled around each token.

        `position` influences the sampling offsets and the attention weights; it is not added to the values.
        """
        query = x + position
        value = rearrange(self.value_proj(x), "b n (k d) -> b n k d", k=self.heads)
        axes = {"k": self.heads, "l": LEVELS, "p": self.points}
        offsets = rearrange(self.sampling_offsets(query), "b n (k l p xy) -> b n k l p xy", xy=2, **axes)
        # Offsets are in pixels of the level that is sampled.
        extents = np.array(sizes, np.float32)[:, None, ::-1]
        locations = offsets.astype(jnp.float32) / extents + _reference_points(sizes)[:, None, None, None]
        weights = jax.nn.softmax(
            rearrange(self.attention_weights(query), "b n (k s) -> b n k s", k=self.heads).astype(jnp.float32)
        )
        weights = rearrange(weights, "b n k (l p) -> b n k l p", l=LEVELS)
        sampled = deformable_attention(value, sizes, locations, weights)
        return self.output_proj(rearrange(sampled, "b n k d -> b n (k d)"))


def ray_offsets(heads: int, points: int) -> tuple[float, ...]:
    """Return the initial sampling offsets.

    Each head samples along its own ray; the larger coordinate of point i (from 1) is i pixels. Order: heads, levels,
    points, (x, y).
    """
    angles = 2 * math.pi * np.arange(heads) / heads
    rays = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    rays /= np.abs(rays).max(axis=-1, keepdims=True)
    offsets = np.arange(1, points + 1)[:, None] * rays[:, None, None]
    return tuple(np.broadcast_to(offsets, (heads, LEVELS, points, 2)).ravel().tolist())


def _reference_points(sizes: Sizes) -> Float[np.ndarray, "n 2"]:
    """Return the pixel centre of every token as (x, y) in [0, 1] of its own level."""
    grids = []
    for height, width in sizes:
        y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
        grids.append(np.stack([x, y], axis=-1).reshape(-1, 2))
    return np.concatenate(grids).astype(np.float32)


class EncoderLayer(nnx.Module):
    """Post-norm layer: deformable self-attention, feed-forward network."""

    def __init__(self, config: HeadConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        self.attention = DeformableAttention(config, dtype, rngs=rngs)
        self.norm1 = layer_norm(config.width, 1e-5, rngs=rngs)
        self.mlp = Mlp(config.width, config.encoder_mlp_width, dtype, rngs=rngs)
        self.norm2 = layer_norm(config.width, 1e-5, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"], position: Float[Array, "n d"], sizes: Sizes) -> Float[Array, "b n d"]:
        """Transform the tokens of all levels, which stay in float32."""
        x = self.norm1(x + self.attention(x, position, sizes))
        return self.norm2(x + self.mlp(x))


class PixelDecoder(nnx.Module):
    """Turn four maps of patch features into three memories and the mask features."""

    def __init__(self, config: HeadConfig, backbone: ViTConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        width, inputs = config.width, backbone.width
        self.pyramid, self.dtype = backbone.pyramid, dtype

        def conv_norm(inputs: int, kernel: int, initial: Distribution, use_bias: bool) -> ConvNorm:
            convolution = conv(inputs, width, kernel, dtype, use_bias=use_bias, initial=initial, bias=ZEROS, rngs=rngs)
            return ConvNorm(convolution, config, rngs=rngs)

        xavier = xavier_uniform(inputs, width)
        self.input_convs = nnx.List([conv_norm(inputs, 1, xavier, True) for _ in range(LEVELS)])
        self.level_encoding = parameter((LEVELS, width), EMBEDDING)
        self.encoder = stack(lambda rngs: EncoderLayer(config, dtype, rngs=rngs), config.encoder_layers, rngs=rngs)
        self.lateral_conv = conv_norm(inputs, 1, caffe(inputs), False)
        self.output_conv = conv_norm(width, 3, caffe(9 * width), False)
        self.mask_feature = conv(width, width, 1, dtype, initial=caffe(width), bias=ZEROS, axes=(), rngs=rngs)

    def __call__(self, levels: tuple[Float[Array, "b h w c"], ...]) -> PixelFeatures:
        """Fuse the levels.

        Args:
          levels: patch features of the four feature blocks, all on the patch grid. Each is resized to its level of
            the pyramid after its 1x1 projection: the two operations commute, and the projected maps have fewer channels
            (a quarter for ViT-L).
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
        """Run the encoder on the tokens of all levels."""
        sizes = tuple(x.shape[1:3] for x in maps)
        tokens = jnp.concatenate([rearrange(x, "b h w d -> b (h w) d") for x in maps], axis=1)
        position = self.positions(sizes)
        tokens, _ = jax.lax.scan(
            lambda x, layer: (layer(parallel.split_by_batch(x), position, sizes), None), tokens, self.encoder
        )
        parts = jnp.split(tokens, np.cumsum([h * w for h, w in sizes])[:-1], axis=1)
        return tuple(rearrange(x, "b (h w) d -> b h w d", h=h) for x, (h, _) in zip(parts, sizes, strict=True))

    def positions(self, sizes: Sizes) -> Float[Array, "n d"]:
        """Return the sine encoding plus the learnt vector of the level, for the tokens of all levels."""
        features = self.level_encoding.shape[-1]
        encodings = [
            rearrange(sine_encoding(height, width, features), "h w d -> (h w) d") + self.level_encoding[level]
            for level, (height, width) in enumerate(sizes)
        ]
        return jnp.concatenate(encodings)


_REFERENCE, _OURS = "decode_head.pixel_decoder", "head/pixel_decoder"
_LAYER, _STACK = f"{_REFERENCE}.encoder.layers.{{i}}", f"{_OURS}/encoder"
TORCH_NAMES = (
    *affine(f"{_REFERENCE}.input_convs.{{i}}.conv", f"{_OURS}/input_convs/{{i}}/conv", CONV),
    *affine(f"{_REFERENCE}.input_convs.{{i}}.gn", f"{_OURS}/input_convs/{{i}}/norm"),
    rule(f"{_REFERENCE}.level_encoding.weight", f"{_OURS}/level_encoding", SAME),
    *affine(f"{_LAYER}.self_attn.sampling_offsets", f"{_STACK}/attention/sampling_offsets", LINEAR),
    *affine(f"{_LAYER}.self_attn.attention_weights", f"{_STACK}/attention/attention_weights", LINEAR),
    *affine(f"{_LAYER}.self_attn.value_proj", f"{_STACK}/attention/value_proj", LINEAR),
    *affine(f"{_LAYER}.self_attn.output_proj", f"{_STACK}/attention/output_proj", LINEAR),
    *affine(f"{_LAYER}.norms.0", f"{_STACK}/norm1"),
    *affine(f"{_LAYER}.ffn.layers.0.0", f"{_STACK}/mlp/fc1", LINEAR),
    *affine(f"{_LAYER}.ffn.layers.1", f"{_STACK}/mlp/fc2", LINEAR),
    *affine(f"{_LAYER}.norms.1", f"{_STACK}/norm2"),
    rule(f"{_REFERENCE}.lateral_convs.0.conv.weight", f"{_OURS}/lateral_conv/conv/kernel", CONV),
    *affine(f"{_REFERENCE}.lateral_convs.0.gn", f"{_OURS}/lateral_conv/norm"),
    rule(f"{_REFERENCE}.output_convs.0.conv.weight", f"{_OURS}/output_conv/conv/kernel", CONV),
    *affine(f"{_REFERENCE}.output_convs.0.gn", f"{_OURS}/output_conv/norm"),
    *affine(f"{_REFERENCE}.mask_feature", f"{_OURS}/mask_feature", CONV),
)
