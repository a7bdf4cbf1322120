"""AdamW with the learning-rate schedule of the recipe, and weight decay by a table of parameter names."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from crossearth_jax.config import OptimizerConfig
from crossearth_jax.runtime import regex_table


def schedule(config: OptimizerConfig, horizon: int) -> optax.Schedule:
    """Return the learning rate as a function of the 0-based step: linear warm-up, then polynomial decay.

    It counts as the reference does: the last warm-up step already has the full rate, and the rate reaches 0 at step
    `horizon - 1`. A run may stop earlier (CrossEarth stops at 30,000 of 40,000). `optax.polynomial_schedule` computes
    1 - i / span, which loses precision in float32 near the end, so its rates differ.

    Args:
      config: rates, warm-up and power; its `horizon` may be None and is not used.
      horizon: number of steps, `Config.horizon`.
    """

    def rate(step: Any) -> Float[Array, ""]:
        step = jnp.asarray(step, jnp.float32)
        ramp = jnp.minimum(step / max(config.warmup_steps - 1, 1), 1.0)
        warm = config.warmup_factor + (1 - config.warmup_factor) * ramp
        span = max(horizon - config.warmup_steps - 1, 1)
        left = jnp.clip((span - (step - config.warmup_steps)) / span, 0.0, 1.0)
        return config.learning_rate * jnp.where(step < config.warmup_steps, warm, left**config.power)

    return rate


def make_optimizer(config: OptimizerConfig, horizon: int, names: Mapping[str, Any]) -> optax.GradientTransformation:
    """Return AdamW for the parameters `names`; tables of the config give the decay and learning rate of each.

    Raises:
      UserError: a table has no pattern for a parameter.
    """
    decay = regex_table.resolve(config.decay, names, "weight decay")
    rates = regex_table.resolve(config.rates, names, "learning rate")
    clip = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    return optax.chain(
        *clip,
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=decay),
        optax.stateless(lambda updates, _: jax.tree.map(operator.mul, rates, updates)),
        optax.scale_by_learning_rate(schedule(config, horizon)),
    )


def average(decay: float | None, step: Any, old: Any, new: Any) -> Any:
    """Return the updated exponential moving average of parameters; None without a decay.

    The decay is smaller in the first steps, min(decay, (1 + step) / (10 + step)), so that the initial values lose their
    weight quickly. `optax.ema` corrects the bias instead.
    """
    if decay is None:
        return None
    keep = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return optax.incremental_update(new, old, 1 - keep)
