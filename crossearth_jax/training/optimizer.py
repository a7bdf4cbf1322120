"""AdamW, the recipe's schedules, and weight decay by an exhaustive table."""

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
    """Learning rate of 0-based step i: linear warm-up, then polynomial decay that reaches 0 at `horizon - 1`.

    As the reference counts: the last warm-up step already has the full rate, and a run may stop before the horizon
    (CrossEarth stops at 30,000 of 40,000). `config.horizon` may be None; `Config.horizon` is the number that counts.
    `optax.polynomial_schedule` forms 1 - i / span, which cancels in float32 near the end, so its rates are others.
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
    """AdamW over the parameters `names`; the tables of the config decide decay and learning rate of each.

    Raises:
      UserError: a table leaves a parameter over.
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
    """Exponential moving average of parameters; None without a decay.

    The decay ramps up so that the first steps do not weigh for ever, which `optax.ema` (it corrects the bias instead)
    does not offer.
    """
    if decay is None:
        return None
    keep = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return optax.incremental_update(new, old, 1 - keep)
