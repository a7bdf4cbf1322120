"""Detect from the values in label files which of several conventions a dataset follows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from crossearth_jax.config import UserError
from crossearth_jax.runtime import picture_files

from .labels import Mask
from .layouts import Scene

SAMPLE = 64  # at least so many files are read if there are as many; conversion refuses values that do not fit later


def histogram(scenes: Sequence[Scene], *, colours: bool = False) -> Int[np.ndarray, 256]:
    """Count pixels per value in the labels of evenly spaced scenes; labels in colours are skipped.

    Args:
      scenes: scenes of the dataset.
      colours: whether an indexed picture stands for the colours of its palette (see `picture_files.read_label`).
    """
    total = np.zeros(256, np.int64)
    for scene in scenes[:: max(len(scenes) // SAMPLE, 1)]:
        try:
            pixels = picture_files.read_label(scene.label.read(), scene.label.path, colours=colours)
        except UserError:  # the conversion will report it
            continue
        if pixels.ndim == 2:
            total += np.bincount(pixels.ravel(), minlength=256)
    return total


def mask_rule(scenes: Sequence[Scene], threshold: int | None = None) -> Mask:
    """Detect the mask values of a dataset: 0 and 1 if the largest value in its files is 1, else 0 and 255.

    Args:
      scenes: scenes of the dataset.
      threshold: threshold of the `Mask` if the object is 255.
    """
    values = np.flatnonzero(histogram(scenes, colours=True))
    return Mask(bright=1) if values.max(initial=0) == 1 else Mask(threshold=threshold)
