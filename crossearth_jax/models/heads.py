"""The segmentation heads by their names in `model.head.kind`."""

from __future__ import annotations

from crossearth_jax.config import ModelConfig, UserError
from crossearth_jax.models.eomt import EomtHead
from crossearth_jax.models.fcn_head import FcnHead, LinearHead
from crossearth_jax.models.mask2former import Mask2FormerHead
from crossearth_jax.models.segmentation_head import Head

HEADS: dict[str, type[Head]] = {
    "mask2former": Mask2FormerHead,
    "eomt": EomtHead,
    "fcn": FcnHead,
    "linear": LinearHead,
}


def head_class(config: ModelConfig) -> type[Head] | None:
    """Return the class of a model's head; None if it has none.

    Raises:
      UserError: there is no head of this name.
    """
    if config.head is None:
        return None
    if config.head.kind not in HEADS:
        raise UserError(f"model.head.kind is '{config.head.kind}', expected one of {', '.join(HEADS)}")
    return HEADS[config.head.kind]
