"""Mask2Former's transformer decoder: each query attends to the pixels of its own mask (arXiv 2112.01527)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float

from crossearth_jax.config import HeadConfig
from crossearth_jax.models.layers import Mlp, MultiHeadAttention, attention_names, layer_norm, linear
from crossearth_jax.models.parameters import parameter
from crossearth_jax.models.pixel_decoder import EMBEDDING, LEVELS, PixelFeatures
from crossearth_jax.models.segmentation_head import Predictions
from crossearth_jax.models.torch_names import LINEAR, SAME, affine, rule
from crossearth_jax.ops.resize import resize_bilinear
from crossearth_jax.ops.sine_encoding import sine_encoding


class DecoderLayer(nnx.Module):
    """Post-norm layer: masked cross-attention, self-attention, feed-forward network."""

    def __init__(self, config: HeadConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        self.cross_attention = MultiHeadAttention(config.width, config.heads, dtype, rngs=rngs)
        self.norm1 = layer_norm(config.width, 1e-5, rngs=rngs)
        self.self_attention = MultiHeadAttention(config.width, config.heads, dtype, rngs=rngs)
        self.norm2 = layer_norm(config.width, 1e-5, rngs=rngs)
        self.mlp = Mlp(config.width, config.decoder_mlp_width, dtype, rngs=rngs)
        self.norm3 = layer_norm(config.width, 1e-5, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b q d"],
        position: Float[Array, "q d"],
        key: Float[Array, "b n d"],
        value: Float[Array, "b n d"],
        mask: Bool[Array, "b q n"],
    ) -> Float[Array, "b q d"]:
        """Update the query states, in float32.

        `position` is added to the queries and to the keys of the self-attention, not to the values.
        """
        x = self.norm1(x + self.cross_attention(x + position, key, value, mask))
        x = self.norm2(x + self.self_attention(x + position, x + position, x))
        return self.norm3(x + self.mlp(x))


class MaskDecoder(nnx.Module):
    """Turn queries and pixel features into class and mask logits."""

    def __init__(self, config: HeadConfig, classes: int, learnt_queries: bool, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        width = config.width
        self.layers = nnx.List([DecoderLayer(config, dtype, rngs=rngs) for _ in range(config.decoder_layers)])
        self.level_embed = parameter((LEVELS, width), EMBEDDING)
        self.query_projection = linear(width, width, dtype, rngs=rngs)
        self.norm = layer_norm(width, 1e-5, rngs=rngs)
        self.class_head = linear(width, classes + 1, dtype, rngs=rngs)
        self.mask_head = nnx.List([linear(width, width, dtype, rngs=rngs) for _ in range(3)])
        if learnt_queries:
            self.queries = parameter((config.queries, width), EMBEDDING)

    def states(self, pixels: PixelFeatures, queries: Float[Array, "q d"]) -> list[Float[Array, "b q d"]]:
        """Run the layers and return the query states before the first layer and after each."""
        maps = [memory + self.level_embed[i] for i, memory in enumerate(pixels.memories)]
        values = [rearrange(x, "b h w d -> b (h w) d") for x in maps]
        keys = [rearrange(x + sine_encoding(*x.shape[1:]), "b h w d -> b (h w) d") for x in maps]
        # Resizing is linear, so resizing the mask features once per level gives the same masks as resizing each mask.
        masks = jax.lax.stop_gradient([resize_bilinear(pixels.masks, x.shape[1:3]) for x in maps])
        first = self.query_projection(queries).astype(jnp.float32)
        # Not `len(pixels.masks)`: the number of images is symbolic when the network is exported.
        states = [jnp.broadcast_to(first, (pixels.masks.shape[0], *first.shape))]
        for i, layer in enumerate(self.layers):
            level = i % LEVELS
            allowed = self.attention_mask(states[-1], masks[level])
            states.append(layer(states[-1], queries, keys[level], values[level], open_if_empty(allowed)))
        return states

    def attention_mask(self, state: Float[Array, "b q d"], features: Float[Array, "b h w d"]) -> Bool[Array, "b q n"]:
        """Return where the queries may attend: where their current mask logits are not negative. No gradient."""
        logits = mask_logits(jax.lax.stop_gradient(self.embed(state)), features)
        return rearrange(logits >= 0, "b q h w -> b q (h w)")

    def embed(self, state: Float[Array, "*b q d"]) -> Float[Array, "*b q d"]:
        """Compute the mask embeddings of the queries."""
        first, second, third = self.mask_head
        return third(nnx.relu(second(nnx.relu(first(self.norm(state))))))

    def predict(self, states: list[Float[Array, "b q d"]], features: Float[Array, "b h w d"]) -> Predictions:
        """Compute class and mask logits of all given states at once."""
        stacked = jnp.stack(states)
        masks = jnp.einsum("pbqd,bhwd->pbqhw", self.embed(stacked), features, preferred_element_type=jnp.float32)
        return Predictions(self.class_head(self.norm(stacked)).astype(jnp.float32), masks)


def mask_logits(embeddings: Float[Array, "b q d"], features: Float[Array, "b h w d"]) -> Float[Array, "b q h w"]:
    """Return the dot products of mask embeddings and pixel features, in float32."""
    return jnp.einsum("bqd,bhwd->bqhw", embeddings, features, preferred_element_type=jnp.float32)


def open_if_empty(allowed: Bool[Array, "b q n"]) -> Bool[Array, "b q n"]:
    """Let a query whose mask is empty attend to all positions."""
    return allowed | ~jnp.any(allowed, axis=-1, keepdims=True)


_REFERENCE, _OURS = "decode_head.transformer_decoder", "head/mask_decoder"
_LAYER, _OUR_LAYER = f"{_REFERENCE}.layers.{{i}}", f"{_OURS}/layers/{{i}}"
TORCH_NAMES = (
    *attention_names(f"{_LAYER}.cross_attn.attn", f"{_OUR_LAYER}/cross_attention"),
    *affine(f"{_LAYER}.norms.0", f"{_OUR_LAYER}/norm1"),
    *attention_names(f"{_LAYER}.self_attn.attn", f"{_OUR_LAYER}/self_attention"),
    *affine(f"{_LAYER}.norms.1", f"{_OUR_LAYER}/norm2"),
    *affine(f"{_LAYER}.ffn.layers.0.0", f"{_OUR_LAYER}/mlp/fc1", LINEAR),
    *affine(f"{_LAYER}.ffn.layers.1", f"{_OUR_LAYER}/mlp/fc2", LINEAR),
    *affine(f"{_LAYER}.norms.2", f"{_OUR_LAYER}/norm3"),
    *affine(f"{_REFERENCE}.post_norm", f"{_OURS}/norm"),
    rule("decode_head.level_embed.weight", f"{_OURS}/level_embed", SAME),
    *affine("decode_head.querys2feat", f"{_OURS}/query_projection", LINEAR),
    *affine("decode_head.cls_embed", f"{_OURS}/class_head", LINEAR),
    *affine("decode_head.mask_embed.0", f"{_OURS}/mask_head/0", LINEAR),
    *affine("decode_head.mask_embed.2", f"{_OURS}/mask_head/1", LINEAR),
    *affine("decode_head.mask_embed.4", f"{_OURS}/mask_head/2", LINEAR),
)
