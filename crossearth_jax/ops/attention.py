"""Multi-head attention, in the formulation that suits the device."""

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
    """Scaled dot-product attention with n heads; the softmax is taken in float32.

    Args:
      query: not yet scaled; it is divided by the root of d here.
      key: one per value.
      value: what is averaged.
      mask: True where a query may look, the same for all heads. A row without any True gives NaN-free nonsense.
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
    """`attention` one head after another, so that the scores of one head stay in a CPU's cache.

    The backward pass computes the scores again, for the same reason.
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
