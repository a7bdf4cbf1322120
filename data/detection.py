"""Telling by the values in label files which of two conventions they follow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crossearth_jax.config import UserError

from . import decode
from .layouts import Scene

SAMPLE = 64  # files; what they do not show is found by conversion, which refuses values that do not fit


def values_in(scenes: Sequence[Scene]) -> set[int]:
    """Values that occur in the labels of evenly chosen scenes; empty if they hold colours."""
    step = max(len(scenes) // SAMPLE, 1)
    values = set[int]()
    for scene in scenes[::step]:
        try:
            pixels = decode.read_label(scene.label.read(), scene.label.path)
        except UserError:  # conversion meets the file again and reports it
            continue
        if pixels.ndim == 2:
            values.update(np.flatnonzero(np.bincount(pixels.ravel(), minlength=256)).tolist())
    return values
