"""What the maps ask of a model, and the way of a scene's windows through it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8

from crossearth_jax.config import UserError
from crossearth_jax.mapping.mosaic import Plan, Tile
from crossearth_jax.mapping.scene import Scene

ScoreFn = Callable[[UInt8[np.ndarray, "b h w 3"]], Any]


@runtime_checkable
class Scorer(Protocol):
    """A segmentation model for one window size."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the scores' channels."""
        ...

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """RGB colour of each class."""
        ...

    @property
    def window(self) -> int:
        """Side of the windows the model was trained for, in pixels."""
        ...

    @property
    def multiple(self) -> int:
        """The sides of its input must be multiples of this."""
        ...

    def score(self, images: UInt8[np.ndarray, "b h w 3"]) -> Any:
        """Scores (b, h, w, classes) of 8-bit RGB windows, float32 >= 0, numpy or (asynchronous) JAX."""
        ...


class Strip(NamedTuple):
    """The pixels under one row of windows of one panel."""

    panel: int
    row: int
    left: int  # grid column of the first pixel
    image: UInt8[np.ndarray, "h w 3"]
    valid: Bool[np.ndarray, "h w"]


def strips(scene: Scene, plan: Plan) -> Iterator[Strip]:
    """Reads a scene strip by strip, whatever the blocks of its file."""
    for panel, row in itertools.product(range(plan.panels), range(len(plan.tops))):
        columns = plan.columns(panel)
        left, right = plan.lefts[columns[0]], plan.lefts[columns[-1]] + plan.window[1]
        image, valid = scene.read(plan.tops[row], left, plan.window[0], right - left)
        yield Strip(panel, row, left, image, valid)


def ahead[T](items: Iterator[T]) -> Generator[T]:
    """Makes the next item in a thread while the caller works on this one."""

    def take() -> list[T]:
        return list(itertools.islice(items, 1))

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(take)
        while taken := future.result():
            future = pool.submit(take)
            yield taken[0]


def tiles(
    plan: Plan, parts: Iterator[Strip]
) -> Iterator[tuple[Tile, UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]]:
    """Cuts strips into windows; windows without a valid pixel are left out."""
    numbers = itertools.count()
    for part in parts:
        for column in plan.columns(part.panel):
            number, left = next(numbers), plan.lefts[column] - part.left
            inside = slice(left, left + plan.window[1])
            if part.valid[:, inside].any():
                yield Tile(part.panel, part.row, column, number), part.image[:, inside], part.valid[:, inside]


def score_tiles(
    score: ScoreFn,
    classes: int,
    windows: Iterator[tuple[Tile, UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]],
    batch_size: int,
) -> Iterator[tuple[Tile, Float[np.ndarray, "h w k"], Bool[np.ndarray, "h w"]]]:
    """Scores windows in batches of one static size, in order.

    The next batch is started before the previous one is fetched, so that the device never waits for the host.

    Raises:
      UserError: the model gives another number of classes than it has names.
    """
    waiting: list[tuple[Any, Any]] = []
    for group in itertools.batched(windows, batch_size):
        images = np.stack([image for _, image, _ in group])
        # The last batch is filled up so that nothing is compiled for it; the filling is not fetched.
        filled = np.pad(images, [(0, batch_size - len(group)), (0, 0), (0, 0), (0, 0)])
        waiting.append((group, score(filled)))
        if len(waiting) == 2:
            yield from _fetch(*waiting.pop(0), classes)
    for group, scores in waiting:
        yield from _fetch(group, scores, classes)


def _fetch(group: Any, scores: Any, classes: int) -> Iterator[tuple[Any, Any, Any]]:
    if scores.shape[-1] != classes:
        raise UserError(f"the model scores {scores.shape[-1]} classes but {classes} are named; name every class")
    for (tile, _, valid), values in zip(group, np.asarray(scores), strict=False):
        yield tile, values, valid


def with_flips(score: ScoreFn) -> ScoreFn:
    """Averages the scores of a window and of its three mirror images, a cheap test-time augmentation."""

    def averaged(images: UInt8[np.ndarray, "b h w 3"]) -> Any:
        total = score(images)
        for flip in (np.s_[:, ::-1], np.s_[:, :, ::-1], np.s_[:, ::-1, ::-1]):
            total = total + score(np.ascontiguousarray(images[flip]))[flip]
        return total / 4

    return averaged
