"""Earth-Style Injection in a training run: set it up from the config, and apply functions to restyled images only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from crossearth_jax.augment.style_injection import Injection, style_injection
from crossearth_jax.config import Config, StyleConfig, UserError
from crossearth_jax.models.style_network import StyleKind, StyleNetwork
from crossearth_jax.runtime import parallel
from crossearth_jax.training.state import Shapes
from crossearth_jax.weights.style_statistics import load_statistics

Levels = tuple[Float[Array, "b h w c"], ...]


class Styles(NamedTuple):
    """How a step restyles images."""

    inject: Injection
    groups: int  # number of equal parts of a (micro-)batch that choose their restyled images independently
    shapes: Shapes  # of the style network's parameters (`style/…`)


def build_styles(config: Config, shards: int) -> Styles:
    """Read the style statistics, check that they fit the run, and set up Earth-Style Injection.

    Args:
      config: the experiment.
      shards: number of shards of the batch.

    Raises:
      UserError: the statistics are missing, damaged or of another network, or contain a target domain of the run that
        was not allowed; or `style.groups` is not a multiple of the shards.
    """
    if config.style is None:
        return Styles(no_injection, shards, {})
    groups = config.style.groups or shards
    if groups % shards:
        raise UserError(f"style.groups is {groups}, expected a multiple of the {shards} device shards of the batch")
    network = style_network(config)
    statistics = load_statistics(config.style.statistics, network.kind)
    statistics.check_targets(config.data.source, config.data.data_dir)
    return Styles(style_injection(config.style, network, statistics.sampler, groups), groups, network.shapes())


def no_injection(
    params: Mapping[str, jax.Array],
    key: PRNGKeyArray,
    images: Float[Array, "b h w 3"],
    inside: Bool[Array, "b h w"] | None = None,
) -> tuple[Float[Array, "b h w 3"], Bool[Array, " b"]]:
    """Return the images unchanged."""
    del params, key, inside
    return images, jnp.zeros(len(images), bool)


def style_targets(config: Config) -> tuple[str, ...]:
    """Return the target domains of the run that its style statistics contain, with the permission in their file.

    Raises:
      UserError: see `build_styles`.
    """
    if config.style is None:
        return ()
    statistics = load_statistics(config.style.statistics, style_network(config).kind)
    return statistics.check_targets(config.data.source, config.data.data_dir)


def style_network(config: Config) -> StyleNetwork:
    """Return the style network that the config names.

    Raises:
      UserError: `style.backend` is unknown.
    """
    assert config.style is not None
    if config.style.backend not in get_args(StyleKind):
        raise UserError(f"style.backend is '{config.style.backend}', expected one of {', '.join(get_args(StyleKind))}")
    return StyleNetwork(cast(StyleKind, config.style.backend), config.model.dtype)


def of_styled(
    function: Callable[[Levels], Float[Array, "n s t 3"]],
    config: StyleConfig | None,
    groups: int,
    styled: Bool[Array, " b"],
    levels: Levels,
) -> Float[Array, "b s t 3"]:
    """Apply `function` to the feature levels of the restyled images only; other images get arbitrary values.

    Every group has at most `ceil(probability x its images)` restyled images (`augment.style_injection`; with
    `style.literal` all), so that many are gathered from each group. If no group has any, nothing is computed.

    Args:
      function: function of levels with a leading batch axis that treats each sample independently.
      config: None if the run restyles nothing; then the result is zero.
      groups: number of equal parts of the batch that choose their images independently, a multiple of the device
        shards.
      styled: which images are restyled.
      levels: feature levels of all images.
    """
    size = len(styled) // groups
    count = 0 if config is None else size if config.literal else math.ceil(round(config.probability * size, 9))
    shape = jax.eval_shape(function, levels)
    if count == 0:
        return jnp.zeros(shape.shape, shape.dtype)

    def pieces(x: Array) -> Array:
        return rearrange(x, "(g s) ... -> g s ...", g=groups)

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
