"""Resample values and validity to a coarser or finer grid of the same origin and orientation.

Each axis is resampled separately: to coarser pixels by the mean over their area, to finer pixels by linear
interpolation between pixel centres. Only valid pixels are used.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Num

SHARE = 0.5  # smallest share of a new pixel's area that must be valid for the pixel to be valid
ROUNDING = 1e-6  # tolerance of that share for floating-point rounding


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis of `size` original pixels, and new pixels of length `scale` (in original pixels) with the same origin."""

    size: int
    scale: float

    def support(self, start: int, stop: int) -> tuple[int, int]:
        """Return the range of original pixels (first, past the last) on which new pixels `start` to `stop` depend."""
        first, last = start * self.scale - 0.5, stop * self.scale + 0.5
        return max(0, math.floor(first)), min(self.size, math.ceil(last))

    def areas(self, start: int, stop: int) -> scipy.sparse.csr_array:
        """Return a matrix (new pixels, supporting pixels) with the share of each new pixel that each pixel covers.

        The part of a new pixel beyond the end of the axis is ignored, so every row adds up to one.
        """
        edges = np.clip(np.arange(start, stop + 1) * self.scale, 0, self.size)
        first = np.floor(edges[:-1]).astype(int)
        pixels = first[:, None] + np.arange(math.ceil(self.scale) + 1)
        overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
        return self._matrix(start, stop, pixels, overlap.clip(0) / np.diff(edges)[:, None])

    def weights(self, start: int, stop: int) -> scipy.sparse.csr_array:
        """Return a matrix (new pixels, supporting pixels) of the weights that give the new values; rows add up to one.

        The weights are areas for coarser pixels and those of linear interpolation for finer ones.
        """
        if self.scale > 1:
            return self.areas(start, stop)
        centres = (np.arange(start, stop) + 0.5) * self.scale - 0.5
        before = np.floor(centres).astype(int)
        share = centres - before
        pixels = np.stack([before, before + 1], -1).clip(0, self.size - 1)
        return self._matrix(start, stop, pixels, np.stack([1 - share, share], -1))

    def _matrix(self, start: int, stop: int, pixels: np.ndarray, shares: np.ndarray) -> scipy.sparse.csr_array:
        first, last = self.support(start, stop)
        rows = np.broadcast_to(np.arange(stop - start)[:, None], pixels.shape)
        some = shares > 0
        entries = shares[some], (rows[some], pixels[some] - first)
        return scipy.sparse.coo_array(entries, shape=(stop - start, last - first)).tocsr()


def resample(
    values: Num[np.ndarray, "c h w"],
    valid: Bool[np.ndarray, "h w"],
    rows: tuple[Axis, int, int],
    columns: tuple[Axis, int, int],
) -> tuple[Float[np.ndarray, "c h2 w2"], Bool[np.ndarray, "h2 w2"]]:
    """Resample a window.

    Args:
      values: values of the original pixels on which the new pixels depend (`Axis.support`); those of invalid pixels
        are not used.
      valid: which of these pixels are valid.
      rows: (axis, start, stop) of the new pixels along the rows.
      columns: (axis, start, stop) of the new pixels along the columns.

    Returns:
      The new values: weighted means over the valid pixels, 0 where there are none. And which new pixels are valid:
      those whose area is covered by valid pixels to at least `SHARE`.
    """
    shares = _apply(rows[0].areas(*rows[1:]), columns[0].areas(*columns[1:]), valid.astype(np.float64))
    down, across = rows[0].weights(*rows[1:]), columns[0].weights(*columns[1:])
    weight = _apply(down, across, valid.astype(np.float64))
    kind = np.result_type(values.dtype, np.float32)
    means = np.zeros((len(values), *weight.shape), kind)
    for band, mean in zip(values, means, strict=True):
        total = _apply(down, across, np.where(valid, band, 0).astype(np.float64))
        np.divide(total, weight, out=mean, where=weight > 0, casting="same_kind")
    return means, shares >= SHARE - ROUNDING


def _apply(
    rows: scipy.sparse.csr_array, columns: scipy.sparse.csr_array, values: Float[np.ndarray, "h w"]
) -> Float[np.ndarray, "h2 w2"]:
    return np.ascontiguousarray((columns @ (rows @ values).T).T)
