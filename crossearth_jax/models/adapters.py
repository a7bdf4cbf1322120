"""The adapters of the backbone by their names in `model.adapter`.

Rein, the adapter of CrossEarth, is not among them: its tokens are also the queries of the mask decoder, and published
files name its parameters (`reins/…`). `network.Network` builds it.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx

from crossearth_jax.config import ModelConfig, UserError
from crossearth_jax.models.earth_adapter import EarthAdapter
from crossearth_jax.models.lora import Lora, Soma
from crossearth_jax.models.vit import Adapter

# Called with the configuration of the model, the type of the matrix products and `rngs`.
ADAPTERS: dict[str, Callable[..., Adapter]] = {
    "lora": Lora,
    "soma": Soma,
    "earth_adapter": EarthAdapter,
}


def build_adapter(config: ModelConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs) -> Adapter | None:
    """Build the adapter of a model; None if it has none or Rein.

    Raises:
      UserError: there is no adapter of this name.
    """
    if config.adapter in ("rein", "none"):
        return None
    if config.adapter not in ADAPTERS:
        raise UserError(f"model.adapter is '{config.adapter}', expected one of rein, none, {', '.join(ADAPTERS)}")
    return ADAPTERS[config.adapter](config, dtype, rngs=rngs)
