"""Multi-head attention, in the formulation that is fastest on the platform."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from crossearth_jax.ops.backend import platform


def attention(
    query: Float[Array, "b q n d"],
    key: Float[Array, "b k n d"],
    value: Float[Array, "b k n d"],
    mask: Bool[Array, "b q k"] | None = None,
) -> Float[Array, "b q n d"]:
    """Compute scaled dot-product attention with n heads; the softmax is computed in float32.

    Args:
      query: not yet scaled; it is divided by the square root of d here.
      key: keys, one per value.
      value: values to average.
      mask: True where attention is allowed, the same for all heads. A row without any True gives a finite result
        without meaning.
    """
    if platform() == "cpu":
        return attention_by_head(query, key, value, mask)
    return jax.nn.dot_product_attention(query, key, value, mask=None if mask is None else mask[:, None])


def attention_by_head(
    query: Float[Array, "b q n d"],
    key: Float[Array, "b k n d"],
    value: Float[Array, "b k n d"],
    mask: Bool[Array, "b q k"] | None = None,
) -> Float[Array, "b q n d"]:
    """Compute `attention` one head after another, so that the attention weights of one head stay in a CPU's cache.

    The backward pass recomputes them, for the same reason.
    """

    @jax.checkpoint
    def head(inputs: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        query, key, value = inputs
        scores = jnp.einsum("bqd,bkd->bqk", query * query.shape[-1] ** -0.5, key, preferred_element_type=jnp.float32)
        if mask is not None:
            scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
        return jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(scores).astype(value.dtype), value)

    heads = jax.lax.map(head, tuple(rearrange(x, "b t n d -> n b t d") for x in (query, key, value)))
    return rearrange(heads, "n b q d -> b q n d")
