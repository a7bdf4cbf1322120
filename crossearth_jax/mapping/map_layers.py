"""Raster layers computed from blended scores: classes, the scores themselves, and the confidence of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Num, UInt8

from crossearth_jax.benchmark import IGNORE
from crossearth_jax.config import UserError
from crossearth_jax.inference.windows import ScoredArea
from crossearth_jax.ops.probabilities import probabilities

NODATA = IGNORE  # nodata value of class maps


@dataclasses.dataclass(frozen=True)
class Legend:
    """Names and RGB colours of the classes.

    Raises:
      UserError: there are no classes, more than an 8-bit map can hold, or not one colour per class.
    """

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def __post_init__(self):
        if not 0 < len(self.names) <= NODATA:
            raise UserError(f"the model has {len(self.names)} classes, expected 1 to {NODATA} for a class map")
        if len(self.palette) != len(self.names):
            raise UserError(f"found {len(self.palette)} colours for {len(self.names)} classes, expected one for each")


@dataclasses.dataclass(frozen=True)
class Layer:
    """One output raster computed from the scores."""

    suffix: str  # appended to the stem of the map's file name
    bands: tuple[str, ...]
    dtype: str
    nodata: int | float
    values: Callable[[ScoredArea], Num[np.ndarray, "bands h w"]]
    categorical: bool = False  # whether values are class ids, which get colours and names


def class_layer() -> Layer:
    """Return the layer of class ids: at every pixel the class with the highest score."""
    return Layer("", ("class",), "uint8", NODATA, lambda area: classes(area)[None], categorical=True)


def score_layer(legend: Legend) -> Layer:
    """Return the layer of blended scores, one band per class."""
    return Layer("_scores", legend.names, "float32", np.nan, lambda area: _blank(area, np.moveaxis(area.scores, -1, 0)))


def confidence_layer(temperature: float) -> Layer:
    """Return the layer with the bands margin, entropy and probability; see `confidence`."""
    return Layer(
        "_confidence",
        ("margin", "entropy", "probability"),
        "float32",
        np.nan,
        lambda area: _blank(area, confidence(area.scores, temperature)),
    )


def classes(area: ScoredArea) -> UInt8[np.ndarray, "h w"]:
    """Return the class with the highest score at every pixel (the lowest id in a tie), `NODATA` at invalid pixels."""
    return np.where(area.valid, area.scores.argmax(-1), NODATA).astype(np.uint8)


def confidence(scores: Float[np.ndarray, "h w k"], temperature: float = 1.0) -> Float[np.ndarray, "3 h w"]:
    """Return margin, entropy and probability from the probabilities of the classes (`ops.probabilities`).

    Returns:
      Margin: the largest probability minus the second largest, from 0 (a tie) to 1. Entropy: that of the probabilities
      divided by that of equal ones, from 0 (all in one class) to 1. Probability: the largest one, that of the class in
      the map. Where all scores are 0, the margin is 0 and the entropy 1. A model with a single class has margin 1,
      entropy 0 and probability 1.
    """
    count = scores.shape[-1]
    if count == 1:
        one = np.ones_like(scores[..., 0])
        return np.stack([one, np.zeros_like(one), one])
    shares = probabilities(scores, temperature)
    second, first = np.partition(shares, count - 2, axis=0)[-2:]
    entropy = -(shares * np.log(np.maximum(shares, np.finfo(np.float32).tiny))).sum(0) / np.log(np.float32(count))
    return np.stack([first - second, entropy.clip(0, 1), first])


def _blank(area: ScoredArea, values: Float[np.ndarray, "bands h w"]) -> Float[np.ndarray, "bands h w"]:
    return np.where(area.valid, values, np.float32(np.nan))
