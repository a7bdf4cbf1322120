"""Selection of the smallest values without sorting."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def smallest(values: Float[Array, "*b n"], count: int) -> Float[Array, "*b n"]:
    """Mark the `count` smallest values of each row.

    The largest selected value (the limit) is found bit by bit, since non-negative floats have the same order as their
    bit patterns. That takes 31 sums over a row. A sort of thousands of values is slow on every device and takes a
    minute to compile for a TPU.

    Args:
      values: non-negative float32, rows along the last axis. No gradient passes.
      count: how many to mark, at most the row's length.

    Returns:
      Weights that add up to `count` in each row: 1 below the limit, 0 above. Values equal to the limit share the rest
      equally.
    """
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(values), jnp.int32)

    def set_bit(i: Array, limit: Array) -> Array:
        raised = limit | (1 << (30 - i))
        return jnp.where((bits < raised).sum(-1, keepdims=True) < count, raised, limit)

    limit = jax.lax.fori_loop(0, 31, set_bit, jnp.zeros((*bits.shape[:-1], 1), jnp.int32))
    below, ties = bits < limit, bits == limit
    return below + ties * ((count - below.sum(-1, keepdims=True)) / ties.sum(-1, keepdims=True))
