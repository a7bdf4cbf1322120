"""Convert one scene to tiles: decode, check, map labels to train ids, cut, encode. Runs in worker processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8

from crossearth_jax.benchmark import IGNORE
from crossearth_jax.config import UserError
from crossearth_jax.runtime import fingerprints, picture_files

from .labels import LabelRule
from .layouts import Scene
from .tiles import Cut


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the scenes of one domain are converted."""

    labels: LabelRule
    largest: tuple[int, int]  # maximum height and width of a tile
    cut: Cut | None = None  # tiling rule; None: a scene becomes one record
    uncut: int = 0  # pixels; scenes whose sides do not exceed this are already tiles and are not cut


@dataclasses.dataclass(frozen=True)
class Tile:
    """One record."""

    id: str
    image: bytes  # PNG, or the JPEG file of the dataset
    label: bytes  # PNG of train ids


@dataclasses.dataclass(frozen=True)
class Converted:
    """Result of converting a scene, or some tiles of one."""

    name: str  # for messages
    digests: Sequence[tuple[str, str]]  # image and digest of its pixels; images of a single colour are left out
    sizes: list[tuple[int, int]]  # height and width of the tiles
    histogram: Int[np.ndarray, 256]  # pixels per label value over the tiles
    tiles: list[Tile]  # empty after an inspection
    hashes: Sequence[tuple[str, int]] = ()  # tile and perceptual hash (`fingerprints`); only from inspections
    unlabelled: int = 0  # tiles in which every pixel is ignored
    note: str = ""  # a warning
    fault: str = ""  # the error because of which the conversion failed


def convert(scene: Scene, recipe: Recipe, inspect_only: bool = False) -> Converted:
    """Read a scene and cut it into tiles.

    Raises:
      UserError: a file is damaged, the sizes of image and label differ, or a label value is unknown.
    """
    data = scene.image.read()
    image = picture_files.read_image(data, scene.image.path)
    stored = picture_files.read_label(scene.label.read(), scene.label.path, colours=recipe.labels.colours)
    if stored.shape[:2] != image.shape[:2]:
        raise UserError(
            f"{scene.label.path} has {stored.shape[1]} x {stored.shape[0]} pixels, its image {scene.image.path}"
            f" {image.shape[1]} x {image.shape[0]}; download both again"
        )
    label = recipe.labels.train_ids(stored, scene.label.path)
    pieces = _pieces(image, label.ids, scene, recipe)
    digest = fingerprints.digest(image)
    return Converted(
        f"scene {scene.id}",
        digests=[(scene.image.path, digest)] if digest else [],
        sizes=[piece[2].shape for piece in pieces],
        histogram=np.bincount(np.concatenate([piece[2].ravel() for piece in pieces]), minlength=256),
        tiles=[] if inspect_only else [encoded(*piece, data) for piece in pieces],
        unlabelled=sum(bool((piece[2] == IGNORE).all()) for piece in pieces),
        note=label.note,
    )


def inspect(scene: Scene, recipe: Recipe) -> Converted:
    """Run `convert` without encoding; its error becomes the `fault` of the result."""
    try:
        return convert(scene, recipe, inspect_only=True)
    except UserError as error:
        return Converted(f"scene {scene.id}", [], [], np.zeros(256, np.int64), [], fault=str(error))


def _pieces(
    image: UInt8[np.ndarray, "h w 3"], label: UInt8[np.ndarray, "h w"], scene: Scene, recipe: Recipe
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return (id, image, label) of every tile."""
    height, width = label.shape
    if recipe.cut is None or max(height, width) <= recipe.uncut:
        if height > recipe.largest[0] or width > recipe.largest[1]:
            raise UserError(
                f"{scene.image.path} has {width} x {height} pixels, expected at most"
                f" {recipe.largest[1]} x {recipe.largest[0]}; check that it belongs to this dataset"
            )
        return [(scene.id, image, label)]
    return [
        (f"{scene.id}_{box.left}_{box.top}_{box.right}_{box.bottom}", image[box.slices], label[box.slices])
        for box in recipe.cut.boxes(height, width)
    ]


def encoded(name: str, image: UInt8[np.ndarray, "h w 3"], label: UInt8[np.ndarray, "h w"], data: bytes = b"") -> Tile:
    """Return a record. `data`, the file of the image, is stored unchanged if it is a PNG or JPEG of these pixels."""
    keep = data and picture_files.is_stored_as(data, image)  # as PNG, a photograph would take five times the space
    return Tile(name, data if keep else picture_files.encode(image), picture_files.encode(label))
