"""Conversion of a scene's values to 8-bit RGB: one linear stretch per band, the same for the whole scene."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Num, UInt8

from crossearth_jax.config import UserError

PERCENTILES = (2.0, 98.0)
ROWS = 64  # rows stretched at a time, since the intermediate numbers need at least four times the memory of the result
SAMPLE = 2**20  # number of valid pixels that is enough to estimate the percentiles of a scene


@dataclasses.dataclass(frozen=True)
class Stretch:
    """A linear map from each band's range (low, high) to 0..255; values outside the range are clipped."""

    ranges: tuple[tuple[float, float], ...]
    origin: str  # how the ranges were chosen, for log and metadata

    def __call__(self, values: Num[np.ndarray, "3 h w"]) -> UInt8[np.ndarray, "3 h w"]:
        """Return the values as 8 bit, rounded to the nearest; NaN becomes 0, as does a band whose range is empty."""
        if values.dtype == np.uint8 and set(self.ranges) == {(0, 255)}:
            return values
        kind = np.result_type(values.dtype, np.float32)  # float64 for 32-bit integers, which float32 would round
        low, high = np.array(self.ranges, kind).T[..., None, None]
        gain = np.divide(255, high - low, where=high > low, out=np.zeros_like(low))
        stretched = np.empty(values.shape, np.uint8)
        for top in range(0, values.shape[1], ROWS):
            rows = np.s_[:, top : top + ROWS]
            scaled = np.nan_to_num((values[rows].astype(kind) - low) * gain)
            stretched[rows] = np.clip(np.rint(scaled), 0, 255)
        return stretched

    def __str__(self) -> str:
        return f"{', '.join(f'{low:g}..{high:g}' for low, high in self.ranges)} to 0..255 ({self.origin})"


AS_IS = Stretch(((0.0, 255.0),) * 3, "8 bit, unchanged")


def fixed(low: float, high: float) -> Stretch:
    """Return the stretch with the same range for all bands.

    Raises:
      UserError: the range is empty.
    """
    if not low < high:
        raise UserError(f"the value range is {low:g} to {high:g}, expected low < high")
    return Stretch(((low, high),) * 3, "given range")


def percentile(values: Num[np.ndarray, "3 n"], percentiles: tuple[float, float] = PERCENTILES) -> Stretch:
    """Return the stretch between two percentiles of each band's valid values; 0..1 if there are no valid values.

    Raises:
      UserError: the percentiles are not in ascending order between 0 and 100.
    """
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise UserError("the percentiles are {:g} and {:g}, expected 0 <= low < high <= 100".format(*percentiles))
    found = (
        np.percentile(values.astype(np.float64), percentiles, axis=1).T.tolist() if values.size else [(0.0, 1.0)] * 3
    )
    return Stretch(tuple((low, high) for low, high in found), "percentiles {:g} and {:g}".format(*percentiles))
