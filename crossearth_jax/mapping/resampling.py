"""Values and validity on a coarser or finer grid of the same origin and orientation, from the valid pixels alone.

Such a grid is resampled along each axis on its own: to coarser pixels by the mean over their area, to finer ones
linearly between centres. What is not valid takes no part in either.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Num

SHARE = 0.5  # of a pixel's area that must hold data
ROUNDING = 1e-6  # of a share: a border between pixels, computed in floating point, counts for both sides


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis of `size` pixels, covered by pixels that are `scale` of them long and begin at the same end."""

    size: int
    scale: float

    def support(self, start: int, stop: int) -> tuple[int, int]:
        """First and past-the-last pixel of the axis on which the new pixels `start` to `stop` depend."""
        first, last = start * self.scale - 0.5, stop * self.scale + 0.5
        return max(0, math.floor(first)), min(self.size, math.ceil(last))

    def areas(self, start: int, stop: int) -> scipy.sparse.csr_array:
        """Share of each supporting pixel in the part of each new pixel that lies on the axis; rows add up to one."""
        edges = np.clip(np.arange(start, stop + 1) * self.scale, 0, self.size)
        first = np.floor(edges[:-1]).astype(int)
        pixels = first[:, None] + np.arange(math.ceil(self.scale) + 1)
        overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
        return self._matrix(start, stop, pixels, overlap.clip(0) / np.diff(edges)[:, None])

    def weights(self, start: int, stop: int) -> scipy.sparse.csr_array:
        """Weight of each supporting pixel in the value of each new pixel; rows add up to one."""
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
    """Resamples a window.

    Args:
      values: of the pixels that support the new ones; what is not valid may be anything.
      valid: which of them hold data.
      rows: (axis, start, stop) of the new pixels.
      columns: the same across.

    Returns:
      Means over the valid pixels (0 where there are none), and the new pixels of which data covers at least `SHARE`.
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
