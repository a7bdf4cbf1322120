"""Work that only restyled images need, at the price of the restyled share of the batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from crossearth_jax.config import StyleConfig
from crossearth_jax.runtime import parallel

Levels = tuple[Float[Array, "b h w c"], ...]


def of_styled(
    function: Callable[[Levels], Float[Array, "n s t 3"]],
    config: StyleConfig | None,
    shards: int,
    styled: Bool[Array, " b"],
    levels: Levels,
) -> Float[Array, "b s t 3"]:
    """Applies `function` to the feature levels of the restyled images only; the rest of the result is arbitrary.

    Every shard holds at most `ceil(probability x its images)` restyled ones (`augment.style`), so that many are
    gathered from each; where no shard has any, nothing is computed.

    Args:
      function: of levels with a leading batch axis, each example on its own.
      config: None if the run restyles nothing; then the result is zero.
      shards: equal parts of the batch that chose their images on their own, a multiple of the device shards.
      styled: which images were restyled.
      levels: of all images.
    """
    size = len(styled) // shards
    count = 0 if config is None else size if config.literal else math.ceil(round(config.probability * size, 9))
    shape = jax.eval_shape(function, levels)
    if count == 0:
        return jnp.zeros(shape.shape, shape.dtype)

    def pieces(x: Array) -> Array:
        return rearrange(x, "(g s) ... -> g s ...", g=shards)

    def gather(styled: Array, *levels: Array) -> tuple[Array, ...]:
        chosen = jnp.argsort(~styled, stable=True)[:count]
        return tuple(level[chosen] for level in levels)

    def spread(styled: Array, values: Array) -> Array:
        return values[jnp.minimum(jnp.cumsum(styled) - 1, count - 1)]

    def some(levels: Levels) -> Array:
        chosen = parallel.per_example(gather)(pieces(styled), *map(pieces, levels))
        values = function(tuple(rearrange(level, "g n ... -> (g n) ...") for level in chosen))
        spread_out: Any = parallel.per_example(spread)(pieces(styled), pieces(values))
        return rearrange(spread_out, "g s ... -> (g s) ...")

    return jax.lax.cond(styled.any(), some, lambda _: jnp.zeros(shape.shape, shape.dtype), levels)
