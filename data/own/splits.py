"""Assign images, or spatial blocks of rasters, to splits."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crossearth_jax.benchmark.domains_file import (
    SPLITS,
    BlockSplit,
    FolderSplit,
    GroupSplit,
    ListSplit,
    RandomSplit,
    Split,
    SplitRule,
    WholeSplit,
    default_block,
)
from crossearth_jax.benchmark.own_files import Pair
from crossearth_jax.config import UserError

from ..tiles import Box
from .images import Raster

_SLIVER = 4  # parts of blocks narrower than 1/4 of a block are left out


def by_image(rule: SplitRule, pairs: Sequence[Pair]) -> list[Split | None]:
    """Return the split of each image; images with None are left out.

    Raises:
      UserError: the rule does not fit the images.
    """
    if isinstance(rule, WholeSplit):
        return [rule.split] * len(pairs)
    if isinstance(rule, GroupSplit):
        return _by_group(rule, pairs)
    if isinstance(rule, ListSplit):
        return _by_list(rule, pairs)
    if isinstance(rule, FolderSplit):
        return [_by_folder(rule, pair.image) for pair in pairs]
    assert isinstance(rule, RandomSplit)
    if len(pairs) < 2:
        raise UserError(f'split by = "random" needs at least 2 images, found {len(pairs)}; use by = "block"')
    return drawn(rule, len(pairs))


def drawn(rule: RandomSplit | BlockSplit, count: int) -> list[Split | None]:
    """Draw the splits of `count` images or blocks: the shares of the rule, at least one for each share above zero."""
    order = np.random.default_rng(rule.seed).permutation(count)
    tests = max(round(count * rule.test), rule.test > 0)
    validations = max(round(count * rule.validation), rule.validation > 0)
    splits: list[Split | None] = ["train"] * count
    for place, index in enumerate(order[: tests + validations]):
        splits[index] = "test" if place < tests else "validation"
    return splits


def _by_group(rule: GroupSplit, pairs: Sequence[Pair]) -> list[Split | None]:
    groups = list[str]()
    for pair in pairs:
        match = re.match(rule.group, pair.image.stem)
        if match is None:
            raise UserError(f"split.group = '{rule.group}' does not match the name {pair.image.stem} of {pair.image}")
        groups.append(match[1])
    for name in (*rule.validation, *rule.test):
        if name not in groups:
            known = ", ".join(sorted(set(groups))[:20])
            raise UserError(f"split: no image belongs to group '{name}'; the groups are {known}")
    return ["test" if g in rule.test else "validation" if g in rule.validation else "train" for g in groups]


def _by_list(rule: ListSplit, pairs: Sequence[Pair]) -> list[Split | None]:
    places = dict[str, int]()
    for index, pair in enumerate(pairs):
        places.update(dict.fromkeys((pair.key, pair.image.stem, pair.image.name, str(pair.image)), index))
    splits: list[Split | None] = [None if rule.train else "train"] * len(pairs)
    owner = dict[int, Path]()
    for split in SPLITS:
        file = getattr(rule, split)
        for line in _lines(file) if file else ():
            index = places.get(line, places.get(Path(line).stem))
            if index is None:
                raise UserError(
                    f"{file}: no image is called '{line}'; write one name per line, with or without extension"
                )
            if owner.setdefault(index, file) != file:
                raise UserError(f"'{line}' is in {owner[index]} and in {file}; name each image in one list")
            splits[index] = split
    return splits


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({error}); expected one image name per line") from None


def _by_folder(rule: FolderSplit, image: Path) -> Split:
    """Return the split of the innermost folder whose name the rule lists.

    Raises:
      UserError: no folder around the image is listed.
    """
    for parent in image.parents:
        for split in SPLITS:
            if parent.name in getattr(rule, split):
                return split
    names = ", ".join(name for split in SPLITS for name in getattr(rule, split))
    raise UserError(f"split: {image} is in no folder called {names}; add the name of its folder to split")


@dataclasses.dataclass(frozen=True)
class Block:
    """The part of a raster inside one spatial block."""

    image: int  # index of the raster
    box: Box
    split: Split


def by_block(rule: BlockSplit, rasters: Sequence[Raster], tile: int) -> tuple[list[Block], str]:
    """Cut rasters into square spatial blocks and draw the split of each block.

    The grid of blocks starts at the upper left corner of the first raster and is the same for all rasters, so that no
    location is in two splits. Parts at the edge of a raster that are narrower than 1/4 of a block are left out.

    Args:
      rule: side of the blocks and shares.
      rasters: georeferenced, all in one coordinate reference system and not rotated.
      tile: side of the tiles; determines the side of the blocks if the rule does not.

    Returns:
      The parts, and a sentence about the number and size of the blocks.

    Raises:
      UserError: a raster is not georeferenced, has another coordinate reference system or is rotated, or there are too
        few blocks.
    """
    first = rasters[0].grid
    for raster in rasters:
        if not raster.placed or raster.grid.pixel_size() is None:
            raise UserError(f'split by = "block": {raster.path} is not georeferenced; use by = "group" or "random"')
        if raster.grid.crs != first.crs:
            raise UserError(
                f'split by = "block": {raster.path} and {rasters[0].path} have different coordinate reference systems;'
                " warp them to one, or make them two domains"
            )
        if raster.grid.transform.b or raster.grid.transform.d:
            raise UserError(f'split by = "block": {raster.path} is rotated; warp it to a north-up grid with gdalwarp')
    metres = np.array(first.pixel_size())  # width and height of a pixel
    if rule.block is None:
        pixels = np.full(2, default_block(tile, max(max(raster.size) for raster in rasters)))
    else:
        pixels = rule.block / metres
    length = float((pixels * metres).mean())
    side = pixels * np.abs([first.transform.a, first.transform.e])  # in units of the coordinates
    parts, left_out = list[tuple[tuple[int, int], int, Box]](), 0
    for number, raster in enumerate(rasters):
        t, (height, width) = raster.grid.transform, raster.size
        across = np.floor((t.c + (np.arange(width) + 0.5) * t.a - first.transform.c) / side[0]).astype(int)
        down = np.floor((first.transform.f - (t.f + (np.arange(height) + 0.5) * t.e)) / side[1]).astype(int)
        for row, top, bottom in _runs(down):
            for column, left, right in _runs(across):
                if min((bottom - top) * abs(t.e) / side[1], (right - left) * abs(t.a) / side[0]) < 1 / _SLIVER:
                    left_out += (bottom - top) * (right - left)
                else:
                    parts.append(((row, column), number, Box(left, top, right, bottom)))
    keys = sorted({key for key, _, _ in parts})
    wanted = 1 + (rule.test > 0) + (rule.validation > 0)
    if len(keys) < wanted:
        raise UserError(
            f'split by = "block": the rasters cover {len(keys)} blocks of {length:.4g} m, expected at least {wanted};'
            " set a smaller block"
        )
    splits = dict(zip(keys, drawn(rule, len(keys)), strict=True))
    total = sum(raster.size[0] * raster.size[1] for raster in rasters)
    note = f"over {len(keys)} blocks of {length:.4g} m"
    if left_out:
        note += f"; {left_out / total:.1%} of the pixels, narrow parts of blocks at edges, are left out"
    return [Block(number, box, splits[key] or "train") for key, number, box in parts], note


def _runs(values: np.ndarray) -> list[tuple[int, int, int]]:
    """Return (value, first, last + 1) for each run of equal values."""
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return [(int(values[a]), a, b) for a, b in itertools.pairwise(edges)]
