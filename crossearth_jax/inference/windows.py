"""Sliding-window inference: apply a network with a fixed input size to images and scenes of any size.

Evaluation, `Segmentor.predict`, the benchmark's table and maps all use `SlidingWindows`, so a map with the default
blending holds exactly the classes that evaluation scores.

A reading thread cuts the windows row by row. They are batched in one static shape and scored on all local devices,
and their scores are summed on the host. A window has a weight for each of its pixels. The score of a pixel is the
weighted sum over all windows that contain it, divided by the sum of their weights. The running sum covers one row of
windows only, and a very wide scene is processed in vertical panels, so memory does not grow with the scene.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8

from crossearth_jax.config import UserError

AREA_ROWS = 128  # rows of finished scores yielded at a time, which bounds the memory of the code that uses them

Image = UInt8[np.ndarray, "_ _ 3"]  # RGB, of any size

# "mean" is the published protocol: all windows that contain a pixel have the same weight. With "taper" the weight of
# a window falls towards its border, where the network sees the least context; this hides the seams in a map.
Blend = Literal["mean", "taper"]

# A function of 8-bit windows (n, h, w, 3) and their valid pixels (n, h, w) that returns scores (n, h, w, k): NumPy
# arrays, or JAX arrays whose computation may still be running.
ScoreWindows = Callable[[UInt8[np.ndarray, "n h w 3"], Bool[np.ndarray, "n h w"]], Any]


@runtime_checkable
class Raster(Protocol):
    """A source of pixels from which windows are cut: an image in memory or a scene on disk."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        ...

    def read(
        self, top: int, left: int, height: int, width: int
    ) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
        """Return the pixels of a rectangle and the mask of valid pixels; outside the raster no pixel is valid."""
        ...


@dataclasses.dataclass(frozen=True)
class ImageRaster:
    """An 8-bit RGB image in memory, all of whose pixels are valid."""

    image: UInt8[np.ndarray, "h w 3"]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.shape[0], self.image.shape[1]

    def read(
        self, top: int, left: int, height: int, width: int
    ) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
        """Return the pixels of a rectangle and the mask of valid pixels; outside the image no pixel is valid."""
        part = self.image[top : top + height, left : left + width]
        beyond = (0, height - part.shape[0]), (0, width - part.shape[1])
        return np.pad(part, (*beyond, (0, 0))), np.pad(np.ones(part.shape[:2], bool), beyond)


class ScoredArea(NamedTuple):
    """A rectangle of a raster whose scores are complete."""

    top: int
    left: int
    scores: Float[np.ndarray, "h w k"]  # meaningful only where `valid`
    valid: Bool[np.ndarray, "h w"]  # a view that is overwritten when the next area is computed


def window_starts(size: int, window: int, stride: int) -> list[int]:
    """Return the first pixel of every window along one axis; the last window is shifted back to end at the border.

    An axis that is shorter than the window has one window, which starts at 0.
    """
    count = max(size - window + stride - 1, 0) // stride + 1
    return [max(min(i * stride, size - window), 0) for i in range(count)]


def window_weights(length: int, blend: Blend) -> Float[np.ndarray, " w"]:
    """Return the weight of each pixel along one axis of a window.

    With "taper" the weight falls linearly from the centre of the window; it would reach zero at the window's edge,
    half a pixel beyond the centre of the outermost pixel.
    """
    if blend == "mean":
        return np.ones(length, np.float32)
    pixels = np.arange(length, dtype=np.float32)
    return np.minimum(pixels + 0.5, length - pixels - 0.5)


@dataclasses.dataclass(frozen=True)
class WindowPlan:
    """The layout of all windows over a raster."""

    size: tuple[int, int]  # height and width of the raster
    extent: tuple[int, int]  # height and width of every window
    stride: int
    blend: Blend
    panel: int  # width of a panel in pixels

    @functools.cached_property
    def tops(self) -> list[int]:
        """The first pixel row of every row of windows."""
        return window_starts(self.size[0], self.extent[0], self.stride)

    @functools.cached_property
    def lefts(self) -> list[int]:
        """The first pixel column of every column of windows."""
        return window_starts(self.size[1], self.extent[1], self.stride)

    @functools.cached_property
    def weights(self) -> Float[np.ndarray, "h w 1"]:
        """The weight of every pixel of a window."""
        rows, columns = (window_weights(length, self.blend) for length in self.extent)
        return np.outer(rows, columns)[..., None]

    @functools.cached_property
    def weight_sums(self) -> tuple[Float[np.ndarray, " H"], Float[np.ndarray, " W"]]:
        """Sums of the window weights per pixel row and per pixel column; their product is a pixel's weight sum."""
        axes: list[Float[np.ndarray, " n"]] = []
        for starts, length in zip((self.tops, self.lefts), self.extent, strict=True):
            weights, sums = window_weights(length, self.blend), np.zeros(starts[-1] + length, np.float32)
            for start in starts:
                sums[start : start + length] += weights
            axes.append(sums)
        rows, columns = axes
        return rows, columns

    @functools.cached_property
    def panels(self) -> int:
        """The number of panels."""
        return -(-self.size[1] // self.panel)

    def span(self, panel: int) -> tuple[int, int]:
        """Return the first pixel column of a panel and the one after its last."""
        return panel * self.panel, min((panel + 1) * self.panel, self.size[1])

    def columns(self, panel: int) -> list[int]:
        """Return the indices of the window columns that overlap a panel; a column across a seam is in two panels."""
        first, last = self.span(panel)
        return [i for i, left in enumerate(self.lefts) if left < last and left + self.extent[1] > first]

    def __len__(self) -> int:
        """Return the number of windows to score; windows across a seam between panels count twice."""
        return sum(len(self.columns(panel)) for panel in range(self.panels)) * len(self.tops)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlidingWindows:
    """Score rasters of any size with overlapping windows.

    Raises:
      UserError: the window is not a multiple of `multiple` or is shorter than twice `multiple`, or the stride leaves
        gaps between windows.
    """

    score: ScoreWindows
    classes: int  # number of score channels
    window: int  # side of the windows in pixels; along a shorter axis of the raster, windows have the length of that
    # axis, rounded up to a multiple of `multiple`, and at least 2 x `multiple`
    stride: int  # distance between windows in pixels
    multiple: int = 1  # height and width of the network's input must be multiples of this
    blend: Blend = "mean"
    batch_size: int = 4  # windows scored together
    sum_bytes: int = 64 * 2**20  # memory for the running sum; enough for 5,400 columns at window 512 and 6 classes

    def __post_init__(self) -> None:
        if self.window < self.least or self.window % self.multiple:
            raise UserError(
                f"the window is {self.window} pixels, expected a multiple of {self.multiple}, at least {self.least}"
            )
        if not 0 < self.stride <= self.window:
            raise UserError(
                f"the stride is {self.stride} pixels, expected 1 to {self.window} (the window): a larger stride leaves "
                "gaps between windows"
            )

    @property
    def least(self) -> int:
        """Smallest side of a window, 2 x `multiple`: the coarsest feature map has half the patches' resolution."""
        return 2 * self.multiple

    def plan(self, size: tuple[int, int]) -> WindowPlan:
        """Return the layout of the windows over a raster of (height, width) `size`."""
        height, width = (min(self.window, max(-(-side // self.multiple) * self.multiple, self.least)) for side in size)
        widest = max(self.sum_bytes // (height * self.classes * 4), 2 * width)
        panels = -(-size[1] // widest)
        return WindowPlan(size, (height, width), self.stride, self.blend, panel=-(-size[1] // panels))

    def areas(self, raster: Raster, progress: Callable[[int], None] = lambda count: None) -> Generator[ScoredArea]:
        """Score one raster.

        Args:
          raster: may have any size.
          progress: called with the number of windows finished since the previous call. Windows without a valid pixel
            are not scored and count as finished.

        Yields:
          Disjoint areas that together contain every valid pixel; none if the raster has no valid pixel.
        """
        done = 0
        for crop, areas in self._scored([raster]):
            progress(crop.number + 1 - done)
            done = crop.number + 1
            yield from areas
        progress(len(self.plan(raster.size)) - done)

    def labels(self, images: Iterable[Image]) -> Iterator[tuple[int, UInt8[np.ndarray, "_ _"]]]:
        """Predict the class of every pixel (the one with the highest score) of images of any sizes.

        Yields:
          (position in `images`, class ids). Images of the same size are yielded in order; others may overtake them.
        """
        return self.assembled(images, lambda scores: scores.argmax(-1).astype(np.uint8))

    def scores(self, images: Iterable[Image]) -> Iterator[tuple[int, Float[np.ndarray, "_ _ k"]]]:
        """Score every pixel of images of any sizes.

        Yields:
          (position in `images`, scores). Images of the same size are yielded in order; others may overtake them.
        """
        return self.assembled(images, lambda scores: scores)

    def assembled(
        self,
        images: Iterable[Image],
        values_of: Callable[[Float[np.ndarray, "_ _ k"]], Shaped[np.ndarray, "_ _ *c"]],
    ) -> Iterator[tuple[int, Any]]:
        """Assemble values computed from the scores of images of any sizes.

        Args:
          images: may have any sizes.
          values_of: computes the values of an area, of the same height and width, from its scores. The result may be a
            structured array, which holds several values of every pixel.

        Yields:
          (position in `images`, values). Images of the same size are yielded in order; others may overtake them.
        """
        unfinished: dict[int, np.ndarray] = {}
        for crop, areas in self._scored(map(ImageRaster, images)):
            for area in areas:
                values = values_of(area.scores)
                if crop.raster not in unfinished:
                    unfinished[crop.raster] = np.empty((*crop.plan.size, *values.shape[2:]), values.dtype)
                height, width = values.shape[:2]
                unfinished[crop.raster][area.top : area.top + height, area.left : area.left + width] = values
            if crop.last:
                yield crop.raster, unfinished.pop(crop.raster)

    def _scored(self, rasters: Iterable[Raster]) -> Iterator[tuple[_Crop, Iterator[ScoredArea]]]:
        """Yield every scored window with the areas whose scores it completes."""
        sums: dict[int, _Sum] = {}
        # Close the reading thread on every exit, also after an error, before the caller closes the raster.
        with contextlib.closing(_ahead(self._rows(rasters))) as rows:
            for crop, scores in self._batches(itertools.chain.from_iterable(rows)):
                if crop.raster not in sums:
                    sums[crop.raster] = _Sum(crop.plan, self.classes)
                yield crop, sums[crop.raster].add(crop, scores)
                if crop.last:
                    del sums[crop.raster]

    def _rows(self, rasters: Iterable[Raster]) -> Iterator[list[_Crop]]:
        """Yield the windows of every raster, one row of a panel at a time, without those that have no valid pixel."""
        for position, raster in enumerate(rasters):
            plan, number, previous = self.plan(raster.size), 0, list[_Crop]()
            for panel, row in itertools.product(range(plan.panels), range(len(plan.tops))):
                columns = plan.columns(panel)
                first, past = plan.lefts[columns[0]], plan.lefts[columns[-1]] + plan.extent[1]
                image, valid = raster.read(plan.tops[row], first, plan.extent[0], past - first)
                crops: list[_Crop] = []
                for column in columns:
                    inside = np.s_[:, plan.lefts[column] - first : plan.lefts[column] - first + plan.extent[1]]
                    if valid[inside].any():
                        crops.append(_Crop(position, plan, panel, row, column, number, image[inside], valid[inside]))
                    number += 1
                if crops:
                    if previous:
                        yield previous
                    previous = crops
            if previous:
                yield [*previous[:-1], previous[-1]._replace(last=True)]

    def _batches(self, crops: Iterable[_Crop]) -> Iterator[tuple[_Crop, Float[np.ndarray, "h w k"]]]:
        """Score the windows in batches of `batch_size`; all windows of a batch have the same height and width.

        The next batch is started before the previous one is fetched, so that the device does not wait for the host.
        """
        running: list[tuple[list[_Crop], Any]] = []
        for group in _grouped(crops, self.batch_size):
            # Pad the last batch to the static size, so that it needs no compilation of its own.
            filling = [(0, self.batch_size - len(group)), (0, 0), (0, 0)]
            images = np.pad(np.stack([crop.image for crop in group]), [*filling, (0, 0)])
            running.append((group, self.score(images, np.pad(np.stack([crop.valid for crop in group]), filling))))
            if len(running) == 2:
                yield from self._fetched(*running.pop(0))
        for batch in running:
            yield from self._fetched(*batch)

    def _fetched(self, group: list[_Crop], scores: Any) -> Iterator[tuple[_Crop, Float[np.ndarray, "h w k"]]]:
        if scores.shape[-1] != self.classes:
            raise UserError(
                f"the model scores {scores.shape[-1]} classes but {self.classes} are named; give a name for every class"
            )
        yield from zip(group, jax.device_get(scores), strict=False)  # drops the padding of the batch


class _Crop(NamedTuple):
    """A window cut from a raster."""

    raster: int  # index of the raster
    plan: WindowPlan
    panel: int
    row: int  # index of the row of windows
    column: int  # index of the column of windows, counted over the whole raster
    number: int  # index of the window in the order of the plan: panel by panel, row by row
    image: UInt8[np.ndarray, "h w 3"]
    valid: Bool[np.ndarray, "h w"]
    last: bool = False  # whether it is the last scored window of its raster


class _Sum:
    """Running sum of the scores over one row of windows of a panel; row 0 is the first pixel row of these windows."""

    def __init__(self, plan: WindowPlan, classes: int):
        self.plan = plan
        self.scores = np.zeros((plan.extent[0], plan.panel, classes), np.float32)
        self.valid = np.zeros((plan.extent[0], plan.panel), bool)
        self.panel = self.row = 0

    def add(self, crop: _Crop, scores: Float[np.ndarray, "h w k"]) -> Iterator[ScoredArea]:
        """Add a window, in the order of the plan, and yield the areas that are then complete."""
        if crop.panel != self.panel:
            yield from self._advance(len(self.plan.tops))
            self.panel, self.row = crop.panel, 0
        yield from self._advance(crop.row)
        left, (first, past) = self.plan.lefts[crop.column], self.plan.span(crop.panel)
        start, end = max(left, first), min(left + self.plan.extent[1], past)
        inside, target = slice(start - left, end - left), slice(start - first, end - first)
        weighted = scores if self.plan.blend == "mean" else scores * self.plan.weights
        self.scores[:, target] += weighted[:, inside]
        self.valid[:, target] |= crop.valid[:, inside]
        if crop.last:
            yield from self._advance(len(self.plan.tops))

    def _advance(self, row: int) -> Iterator[ScoredArea]:
        """Yield the pixel rows that lie above window row `row`, then move the sum to that row.

        With the number of window rows as `row`, yield all remaining pixel rows.
        """
        if row == self.row:
            return
        top, size = self.plan.tops[self.row], self.plan.size[0]
        end = self.plan.tops[row] if row < len(self.plan.tops) else size
        done = min(end - top, self.plan.extent[0], size - top)
        first, past = self.plan.span(self.panel)
        rows, columns = self.plan.weight_sums
        for start in range(0, done, AREA_ROWS):
            part = np.s_[start : min(start + AREA_ROWS, done), : past - first]
            if self.valid[part].any():
                weights = np.outer(rows[top:][part[0]], columns[first:past])[..., None]
                yield ScoredArea(top + start, first, self.scores[part] / weights, self.valid[part])
        for values in (self.scores, self.valid):
            values[: -done or None] = values[done:]
            values[len(values) - done :] = 0
        self.row = row


def _grouped(crops: Iterable[_Crop], size: int) -> Iterator[list[_Crop]]:
    """Yield groups of `size` windows of the same height and width, in order; incomplete groups come last."""
    waiting: dict[tuple[int, ...], list[_Crop]] = {}
    for crop in crops:
        group = waiting.setdefault(crop.plan.extent, [])
        group.append(crop)
        if len(group) == size:
            yield waiting.pop(crop.plan.extent)
    yield from waiting.values()


def _ahead[T](items: Iterator[T]) -> Generator[T]:
    """Yield the items; a thread computes the next item while the caller processes the current one."""

    def take() -> list[T]:
        return list(itertools.islice(items, 1))

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(take)
        while taken := future.result():
            future = pool.submit(take)
            yield taken[0]
