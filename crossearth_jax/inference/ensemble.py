"""Several models applied as one: their scores are averaged in every window."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, UInt8

from crossearth_jax.config import UserError
from crossearth_jax.inference.segmentor import Segmentor
from crossearth_jax.inference.windows import SlidingWindows


def check_alike(segmentors: Sequence[Segmentor], names: Sequence[str]) -> None:
    """Check that the scores of all models can be averaged.

    Args:
      segmentors: the models, at least one.
      names: what to call each model in an error, such as the path of its file.

    Raises:
      UserError: a model differs from the first one in the number or names of the classes, in the kind of its head, in
        the bands or in the window.
    """
    first = segmentors[0]
    for segmentor, name in zip(segmentors[1:], names[1:], strict=True):
        for what, found, expected, remedy in (
            ("classes", _classes(segmentor), _classes(first), "average checkpoints of the same classes"),
            ("head", _head(segmentor), _head(first), "average checkpoints with the same head"),
            ("bands", segmentor.description.bands, first.description.bands, "average checkpoints of the same bands"),
            ("window", segmentor.window, first.window, "give the window of all with --window"),
        ):
            if found != expected:
                raise UserError(f"{name} has the {what} {_text(found)}, but {names[0]} has {_text(expected)}; {remedy}")


def averaged_windows(segmentors: Sequence[Segmentor], **options: Any) -> SlidingWindows:
    """Return a `SlidingWindows` whose scores are the mean of the scores of several models.

    The cost is the sum of their costs, and the parameters of all of them are in the memory of every device.

    Args:
      segmentors: models for which `check_alike` passes; window and stride are those of the first one.
      options: as for `Segmentor.sliding_windows`; `observe` gets the descriptors of the first model.

    Raises:
      UserError: see `Segmentor.sliding_windows`.
    """
    stride = options.pop("stride", None) or segmentors[0].stride
    first = segmentors[0].sliding_windows(stride=stride, observe=options.pop("observe", None), **options)
    parts = [first, *(segmentor.sliding_windows(stride=stride, **options) for segmentor in segmentors[1:])]
    if len(parts) == 1:
        return parts[0]

    def score(images: UInt8[np.ndarray, "n h w 3"], valid: Bool[np.ndarray, "n h w"]) -> jax.Array:
        return functools.reduce(operator.add, (part.score(images, valid) for part in parts)) / len(parts)

    return dataclasses.replace(parts[0], score=score, multiple=math.lcm(*(part.multiple for part in parts)))


def _classes(segmentor: Segmentor) -> tuple[str, ...] | str:
    return segmentor.description.class_names or f"{segmentor.classes} without names"


def _head(segmentor: Segmentor) -> str:
    head = segmentor.model.config.head
    assert head is not None
    return head.kind


def _text(value: Any) -> str:
    return (", ".join(value) or "unknown") if isinstance(value, tuple) else str(value)
