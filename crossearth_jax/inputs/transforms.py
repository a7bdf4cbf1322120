"""Host-side transforms of one record: the label check and the crop to a static size."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from crossearth_jax.benchmark import IGNORE
from crossearth_jax.config import UserError
from crossearth_jax.inputs.sources import Record


def check_labels(record: Record, classes: int) -> Record:
    """Return `record` if its labels are train ids below `classes` or IGNORE.

    Raises:
      UserError: another value occurs, which the loss could not tell from a class.
    """
    label = record["label"]
    unknown = (label >= classes) & (label != IGNORE)
    if unknown.any():
        raise UserError(
            f"{record['domain']}: record {record['index']} ('{record['id']}') has the label values"
            f" {np.unique(label[unknown]).tolist()}, expected 0..{classes - 1} or {IGNORE}; prepare the dataset again"
        )
    return record


def window(
    image: UInt8[np.ndarray, "h w 3"],
    label: UInt8[np.ndarray, "h w"],
    size: tuple[int, int],
    position: tuple[float, float] = (0.0, 0.0),
) -> tuple[UInt8[np.ndarray, "h2 w2 3"], UInt8[np.ndarray, "h2 w2"]]:
    """Cut a window of `size`; pad an image that is too small at its bottom and right.

    The padding repeats the border of the image, so that a later resize does not mix other colours into the border.
    Labels of the padding are IGNORE.

    Args:
      image: RGB.
      label: train ids.
      size: height and width of the result.
      position: relative position of the window, from 0 (top, left) to 1 (bottom, right).
    """
    rows, columns = (
        _span(length, side, place) for length, side, place in zip(label.shape, size, position, strict=True)
    )
    image, label = image[rows, columns], label[rows, columns]
    padding = [(0, side - length) for length, side in zip(label.shape, size, strict=True)]
    if any(after for _, after in padding):
        image = np.pad(image, [*padding, (0, 0)], mode="edge")
        label = np.pad(label, padding, constant_values=IGNORE)
    return image, label


def _span(length: int, side: int, place: float) -> slice:
    room = max(length - side, 0)
    start = min(int(place * (room + 1)), room)
    return slice(start, start + side)
