"""Which windows cover a scene, and how their overlapping scores become one mosaic in bounded memory.

Along each axis the windows' weights are tapered and normalised to a partition of unity: at every pixel they add
up to one, so blending is a plain sum, and its result is finished as soon as the last window has been added.
Windows come row by row; the sum of one row of windows is all that is held. A scene too wide for that is mapped
in vertical panels, whose few windows across a seam are scored twice; a pixel gets the same addends in the same
order, hence the same bits, with and without panels.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from crossearth_jax.config import UserError
from crossearth_jax.ops.tiling import window_starts

CHUNK = 128  # rows handed on at a time, which bounds what later stages hold


class Tile(NamedTuple):
    """One window of the plan."""

    panel: int
    row: int  # index of the row of windows
    column: int  # index of the column of windows, counted over the whole scene
    number: int  # position in the order of the plan


class Block(NamedTuple):
    """A finished rectangle of the mosaic."""

    top: int
    left: int
    scores: Float[np.ndarray, "h w k"]  # a view that is only good until the next block is asked for
    valid: Bool[np.ndarray, "h w"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The windows over a grid of (height, width) `size`."""

    size: tuple[int, int]
    window: tuple[int, int]
    stride: int
    panel: int  # columns of the grid per panel

    @functools.cached_property
    def tops(self) -> list[int]:
        """First pixel row of every row of windows."""
        return window_starts(self.size[0], self.window[0], self.stride)

    @functools.cached_property
    def lefts(self) -> list[int]:
        """First pixel column of every column of windows."""
        return window_starts(self.size[1], self.window[1], self.stride)

    @functools.cached_property
    def weights(self) -> tuple[Float[np.ndarray, "rows h"], Float[np.ndarray, "columns w"]]:
        """Weights of every row and every column of windows."""
        rows = partition_of_unity(self.tops, self.window[0], self.size[0])
        return rows, partition_of_unity(self.lefts, self.window[1], self.size[1])

    def span(self, panel: int) -> tuple[int, int]:
        """First and past-the-last grid column of a panel."""
        return panel * self.panel, min((panel + 1) * self.panel, self.size[1])

    def columns(self, panel: int) -> list[int]:
        """Indices of the columns of windows that reach into a panel."""
        first, last = self.span(panel)
        return [i for i, left in enumerate(self.lefts) if left < last and left + self.window[1] > first]

    @functools.cached_property
    def panels(self) -> int:
        """Number of panels."""
        return -(-self.size[1] // self.panel)

    def __len__(self) -> int:
        """Number of windows, those across seams counted twice."""
        return sum(len(self.columns(panel)) for panel in range(self.panels)) * len(self.tops)


def make_plan(
    size: tuple[int, int], window: int, stride: int, *, multiple: int = 1, classes: int, sum_bytes: int
) -> Plan:
    """Lays windows over a grid.

    Args:
      size: height and width of the grid.
      window: side of the windows; an axis of the grid that is shorter has windows of its own length, rounded up
        to `multiple`, and to twice that at least: the network's coarsest features have half its resolution.
      stride: distance of windows.
      multiple: of which the model wants the sides of its input.
      classes: channels of the scores.
      sum_bytes: memory for the running sum.

    Raises:
      UserError: the windows would leave gaps or cannot be fed to the model.
    """
    if window < 2 * multiple or window % multiple:
        raise UserError(f"the window is {window} pixels, expected a multiple of {multiple}, at least {2 * multiple}")
    if not 0 < stride <= window:
        raise UserError(
            f"the stride is {stride} pixels, expected 1 to the window's {window}: windows must not leave gaps"
        )
    height, width = (min(window, max(-(-side // multiple), 2) * multiple) for side in size)
    widest = max(sum_bytes // (height * classes * 4), 2 * width)
    panels = -(-size[1] // widest)
    return Plan(size, (height, width), stride, panel=-(-size[1] // panels))


def partition_of_unity(starts: list[int], window: int, size: int) -> Float[np.ndarray, "n w"]:
    """Weights (n, window) of windows along an axis of `size` pixels, summing to one at every pixel of it.

    A window's weight falls linearly from its centre to half a pixel outside its border, where a network knows
    least of what surrounds a pixel; then the weights are divided by their sum.
    """
    taper = np.minimum(np.arange(window) + 0.5, window - np.arange(window) - 0.5)
    total = np.zeros(max(size, window))
    for start in starts:
        total[start : start + window] += taper
    return np.stack([taper / total[start : start + window] for start in starts]).astype(np.float32)


class _Sum:
    """Running sum over one row of windows of a panel; its first row is that of the windows."""

    def __init__(self, plan: Plan, classes: int):
        self.plan = plan
        self.scores = np.zeros((plan.window[0], plan.panel, classes), np.float32)
        self.valid = np.zeros((plan.window[0], plan.panel), bool)
        self.start(0)

    def start(self, panel: int) -> None:
        """Begins a panel."""
        self.panel, self.row = panel, 0
        self.first, self.last = self.plan.span(panel)
        self.scores[:], self.valid[:] = 0, False

    def add(self, tile: Tile, scores: Float[np.ndarray, "h w k"], valid: Bool[np.ndarray, "h w"]) -> None:
        """Adds one window, cut to the panel."""
        left = self.plan.lefts[tile.column]
        first, last = max(left, self.first), min(left + self.plan.window[1], self.last)
        inside, target = slice(first - left, last - left), slice(first - self.first, last - self.first)
        rows, columns = self.plan.weights
        weight = rows[tile.row][:, None] * columns[tile.column][inside]
        self.scores[:, target] += scores[:, inside] * weight[..., None]
        self.valid[:, target] |= valid[:, inside]

    def advance(self, row: int) -> Iterator[Block]:
        """Yields what no window from `row` on touches, and moves there; past the last row yields everything."""
        top, size = self.plan.tops[self.row], self.plan.size[0]
        end = self.plan.tops[row] if row < len(self.plan.tops) else size
        done = min(end - top, self.plan.window[0], size - top)
        for start in range(0, done, CHUNK):
            part = np.s_[start : min(start + CHUNK, done), : self.last - self.first]
            if self.valid[part].any():
                yield Block(top + start, self.first, self.scores[part], self.valid[part])
        for values in (self.scores, self.valid):
            kept = len(values) - done
            values[:kept] = values[done:]
            values[kept:] = 0
        self.row = row


def blend(
    plan: Plan,
    scored: Iterable[tuple[Tile, Float[np.ndarray, "h w k"], Bool[np.ndarray, "h w"]]],
    classes: int,
) -> Iterator[Block]:
    """Blends windows given in the order of the plan.

    Args:
      plan: where the windows are.
      scored: (tile, scores, valid pixels); windows without a valid pixel may be left out, since no valid pixel of
        another window lies in them.
      classes: channels of the scores.

    Yields:
      Disjoint blocks that together hold every valid pixel.
    """
    total = _Sum(plan, classes)
    for tile, scores, valid in scored:
        if tile.panel != total.panel:
            yield from total.advance(len(plan.tops))
            total.start(tile.panel)
        if tile.row != total.row:
            yield from total.advance(tile.row)
        total.add(tile, scores, valid)
    yield from total.advance(len(plan.tops))
