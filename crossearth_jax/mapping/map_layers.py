"""What can be written of blended scores: classes, the scores themselves, how sure the model is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Num, UInt8

from crossearth_jax.benchmark import IGNORE
from crossearth_jax.config import UserError
from crossearth_jax.inference.windows import ScoredArea

NODATA = IGNORE  # of class maps


@dataclasses.dataclass(frozen=True)
class Legend:
    """Names and RGB colours of the classes.

    Raises:
      UserError: there are more classes than a map of bytes holds, or not one colour for each.
    """

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def __post_init__(self):
        if not 0 < len(self.names) <= NODATA:
            raise UserError(f"the model has {len(self.names)} classes, a map holds 1 to {NODATA}")
        if len(self.palette) != len(self.names):
            raise UserError(f"found {len(self.palette)} colours for {len(self.names)} classes, expected one for each")


@dataclasses.dataclass(frozen=True)
class Layer:
    """One raster made of the scores."""

    suffix: str  # added to the map's file name
    bands: tuple[str, ...]
    dtype: str
    nodata: int | float
    values: Callable[[ScoredArea], Num[np.ndarray, "bands h w"]]
    categorical: bool = False  # class ids, with colours and names


def class_layer() -> Layer:
    """Ids of the classes with the highest score."""
    return Layer("", ("class",), "uint8", NODATA, lambda area: classes(area)[None], categorical=True)


def score_layer(legend: Legend) -> Layer:
    """The blended scores, one band per class."""
    return Layer("_scores", legend.names, "float32", np.nan, lambda area: _blank(area, np.moveaxis(area.scores, -1, 0)))


def confidence_layer() -> Layer:
    """Margin and entropy."""
    return Layer(
        "_confidence", ("margin", "entropy"), "float32", np.nan, lambda area: _blank(area, confidence(area.scores))
    )


def classes(area: ScoredArea) -> UInt8[np.ndarray, "h w"]:
    """The best class of every pixel (the first of equals), `NODATA` where the area is not valid."""
    return np.where(area.valid, area.scores.argmax(-1), NODATA).astype(np.uint8)


def confidence(scores: Float[np.ndarray, "h w k"]) -> Float[np.ndarray, "2 h w"]:
    """How sure the model is, from scores divided by their sum.

    Returns:
      Margin: the best share minus the second best, 0 (a tie) to 1; entropy of the shares divided by that of an
      even split, 0 (one class alone) to 1. A pixel without any score has margin 0 and entropy 1; a model with a
      single class has margin 1 and entropy 0.
    """
    count = scores.shape[-1]
    if count == 1:
        return np.stack([np.ones_like(scores[..., 0]), np.zeros_like(scores[..., 0])])
    total = scores.sum(-1, keepdims=True)
    shares = np.divide(scores, total, where=total > 0, out=np.full_like(scores, 1 / count))
    second, first = np.moveaxis(np.partition(shares, count - 2, axis=-1)[..., -2:], -1, 0)
    entropy = -(shares * np.log(np.maximum(shares, np.finfo(np.float32).tiny))).sum(-1) / np.log(np.float32(count))
    return np.stack([first - second, entropy.clip(0, 1)])


def _blank(area: ScoredArea, values: Float[np.ndarray, "bands h w"]) -> Float[np.ndarray, "bands h w"]:
    return np.where(area.valid, values, np.float32(np.nan))
