"""Plan the tiles of a domain of `domains.toml` and their splits, before any tile is read; then read them.

`make_plan` reads headers of images and label rasters, files of polygons and annotations, and, if the range is given by
percentiles, samples of the rasters.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from crossearth_jax.benchmark import IGNORE, own_files
from crossearth_jax.benchmark.domains_file import (
    SPLITS,
    BlockSplit,
    CocoLabels,
    ColourLabels,
    CvatLabels,
    LabelStudioLabels,
    ListSplit,
    NumberLabels,
    OwnDomain,
    RandomSplit,
    Split,
    VectorLabels,
    WholeSplit,
    tile_edges,
)
from crossearth_jax.benchmark.own_files import Pair
from crossearth_jax.config import UserError
from crossearth_jax.runtime import fingerprints
from crossearth_jax.runtime.progress import Progress

from ..conversion import Converted, encoded
from ..labels import Colours, Numbers
from ..tiles import Box
from . import splits
from .images import OwnImage, Picture, Raster, open_image
from .truth import LabelFile, Truth

_TOGETHER = 16  # at most so many tiles of a raster are read at once, to limit memory
_AGREE = 0.02  # relative difference up to which pixel sizes count as the same ground resolution
_REMEDY = "assign them in labels: ids = {…} or colours = {…} by class, or ignore = […]"


@dataclasses.dataclass(frozen=True)
class Piece:
    """Tiles of one image that are read together."""

    image: OwnImage
    truth: Truth
    tiles: tuple[tuple[str, Box], ...]  # id and position in the image


@dataclasses.dataclass(frozen=True)
class Plan:
    """The tiles of a domain by split."""

    pieces: Mapping[Split, Sequence[Piece]]  # only splits that have images
    notes: Sequence[str]  # warnings
    choices: Mapping[str, str]  # decisions, for the metadata
    bands: tuple[str, str, str]
    gsd: float | None
    files: Sequence[Path]  # all source files of the domain


def make_plan(domain: OwnDomain) -> Plan:
    """Open every image and label of a domain and assign their tiles to splits.

    Raises:
      UserError: a file cannot be used, images and labels do not fit, a split is empty, or two splits overlap in space.
    """
    pairs, images, notes = own_files.find_pairs(domain), list[OwnImage](), list[str]()
    progress = Progress(len(pairs), "images")
    for pair in pairs:
        images.append(open_image(pair.image, domain))
        progress.advance(note=f"{domain.key}: headers")
    truths, truth_notes = _truths(domain, pairs, images)
    parts, split_notes, choices = _parts(domain, pairs, images)
    notes += [*truth_notes, *split_notes]
    _refuse_shared_ground(parts, images)
    images = _with_stretches(domain, images, parts)
    return Plan(
        pieces={
            split: _pieces(domain, split, parts, pairs, images, truths)
            for split in SPLITS
            if any(part[2] == split for part in parts)
        },
        notes=notes,
        choices=choices,
        bands=_bands(domain, images),
        gsd=_gsd(domain, images),
        files=source_files(domain, pairs),
    )


def convert(piece: Piece, *, inspect_only: bool = False) -> Converted:
    """Read the tiles of a piece; tiles without any labelled pixel are left out.

    Raises:
      UserError: a file is damaged or a label value is unknown.
    """
    boxes = [box for _, box in piece.tiles]
    whole = Box(
        min(box.left for box in boxes),
        min(box.top for box in boxes),
        max(box.right for box in boxes),
        max(box.bottom for box in boxes),
    )
    image, valid = piece.image.read(whole)
    label = piece.truth.read(piece.image, whole)
    label[~valid] = IGNORE
    digests, hashes, tiles, sizes = list[tuple[str, str]](), list[tuple[str, int]](), [], []
    histogram = np.zeros(256, np.int64)
    for name, box in piece.tiles:
        here = np.s_[box.top - whole.top : box.bottom - whole.top, box.left - whole.left : box.right - whole.left]
        pixels, ids = image[here], label[here]
        if (ids == IGNORE).all():
            continue
        sizes.append(ids.shape)
        histogram += np.bincount(ids.ravel(), minlength=256)
        if digest := fingerprints.digest(pixels):
            digests.append((name, digest))
        if inspect_only:
            if (value := fingerprints.perceptual_hash(pixels)) is not None:
                hashes.append((name, value))
        else:
            alone = isinstance(piece.image, Picture) and ids.shape == piece.image.size
            tiles.append(encoded(name, pixels, ids, piece.image.path.read_bytes() if alone else b""))
    return Converted(
        str(piece.image.path),
        digests=digests,
        sizes=sizes,
        histogram=histogram,
        tiles=tiles,
        hashes=hashes,
        unlabelled=len(piece.tiles) - len(sizes),
    )


def inspect(piece: Piece) -> Converted:
    """Run `convert` without encoding; its error becomes the `fault` of the result."""
    try:
        return convert(piece, inspect_only=True)
    except UserError as error:
        return Converted(str(piece.image.path), [], [], np.zeros(256, np.int64), [], fault=str(error))


def examples(
    pieces: Sequence[Piece], count: int
) -> Iterator[tuple[str, UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]]:
    """Yield id, image and label of `count` evenly spaced tiles; only these are read."""
    tiles = [(piece, tile) for piece in pieces for tile in piece.tiles]
    for index in np.linspace(0, len(tiles) - 1, min(count, len(tiles))).round().astype(int):
        piece, (name, box) = tiles[index]
        image, valid = piece.image.read(box)
        label = piece.truth.read(piece.image, box)
        label[~valid] = IGNORE
        yield name, image, label


def _truths(domain: OwnDomain, pairs: Sequence[Pair], images: Sequence[OwnImage]) -> tuple[list[Truth], list[str]]:
    """Return the labels of each image, and warnings."""
    labels, paths = domain.labels, [pair.image for pair in pairs]
    if isinstance(labels, VectorLabels):
        for image in images:
            if not isinstance(image, Raster) or not image.placed:
                raise UserError(
                    f"{image.path} is not georeferenced, which polygons need; give it a coordinate reference system"
                    " and a geotransform, or use pictures or rasters as labels"
                )
        polygons = _drawing().PolygonLabels(labels)
        return [polygons] * len(images), polygons.check()
    if isinstance(labels, CocoLabels | LabelStudioLabels | CvatLabels):
        _drawing()  # raises the error about the missing extra
        from . import annotations

        if isinstance(labels, CocoLabels):
            return list[Truth](annotations.coco_truth(labels, paths)), []
        if isinstance(labels, LabelStudioLabels):
            return list[Truth](annotations.label_studio_truth(labels, paths)), []
        rule = annotations.cvat_rule(labels)
    elif isinstance(labels, NumberLabels):
        rule = Numbers(labels.table, remedy=_REMEDY)
    else:
        assert isinstance(labels, ColourLabels)
        rule = Colours(labels.table, remedy=_REMEDY)
    truths = list[Truth]()
    for pair, image in zip(pairs, images, strict=True):
        assert pair.label is not None
        file = LabelFile(pair.label, rule, slack=int(domain.off_by_one))
        file.check(image)
        truths.append(file)
    return truths, []


def _drawing() -> Any:
    """Import and return the module that rasterises polygons.

    Raises:
      UserError: rasterio, pyogrio or shapely is not installed.
    """
    try:
        from . import polygons
    except ModuleNotFoundError as missing:
        raise UserError(
            f"labels that are polygons need {missing.name}, which is not installed; install the extra geo:"
            " python -m uv pip install --python .venv -c constraints.txt -e '.[geo]'"
        ) from None
    return polygons


Part = tuple[int, Box, Split]  # number of the image, the part of it, and its split


def _parts(
    domain: OwnDomain, pairs: Sequence[Pair], images: Sequence[OwnImage]
) -> tuple[list[Part], list[str], dict[str, str]]:
    """Return the parts of images with their splits, warnings, and decisions for the metadata."""
    rule = domain.split
    parts, notes, choices = list[Part](), list[str](), dict[str, str]()
    if isinstance(rule, BlockSplit):
        rasters = [image for image in images if isinstance(image, Raster)]
        if len(rasters) < len(images):
            picture = next(image for image in images if isinstance(image, Picture))
            raise UserError(
                f'{domain.key}: split by = "block" needs georeferenced images, {picture.path} is not; use'
                ' by = "group" or "random"'
            )
        blocks, choices["split"] = splits.by_block(rule, rasters, domain.tile)
        parts.extend((block.image, block.box, block.split) for block in blocks)
    else:
        assigned = splits.by_image(rule, pairs)
        parts.extend(
            (number, Box(0, 0, image.size[1], image.size[0]), split)
            for number, (image, split) in enumerate(zip(images, assigned, strict=True))
            if split is not None
        )
        if left_out := assigned.count(None):
            notes.append(f"{left_out} of {len(images)} images are in no list of split and are left out")
        if isinstance(rule, RandomSplit):
            notes.append(
                "the split is random: if images are neighbours, or of the same flight, in-domain scores are too high;"
                ' split by = "group" or "block" separates areas'
            )
    present = {split for _, _, split in parts}
    if not isinstance(rule, WholeSplit):
        for split in SPLITS:
            if split not in present and (split == "train" or _wants(rule, split)):
                raise UserError(
                    f"{domain.key}: split {split} is empty; give it images in split of [domains.{domain.name}]"
                )
    return parts, notes, choices


def _wants(rule: Any, split: Split) -> bool:
    """Return whether the rule requires images in this split; for validation, only lists do."""
    return bool(getattr(rule, split)) and (split == "test" or isinstance(rule, ListSplit))


def _refuse_shared_ground(parts: Sequence[Part], images: Sequence[OwnImage]) -> None:
    """Raise a UserError if georeferenced images of two splits overlap."""
    placed = [
        (image, box, split)
        for number, box, split in parts
        if isinstance(image := images[number], Raster) and image.placed
    ]
    if len({split for _, _, split in placed}) < 2:
        return
    import shapely

    crs = placed[0][0].grid.crs
    grounds = [_ground(image, box, crs) for image, box, _ in placed]
    index = shapely.STRtree(grounds)
    for number, (image, _, split) in enumerate(placed):
        for other in np.sort(index.query(grounds[number], predicate="intersects")):
            twin, _, theirs = placed[other]
            if theirs != split:
                raise UserError(
                    f"{image.path} (split {split}) and {twin.path} (split {theirs}) show the same area; put both into"
                    ' one split, or use split by = "block"'
                )


def _ground(image: Raster, box: Box, crs: Any) -> Any:
    """Return the outline of a part of a raster as a polygon in `crs`, reduced by one pixel on each side."""
    import shapely
    from rasterio.warp import transform

    columns = np.linspace(box.left + 1, max(box.right - 1, box.left + 1), 9)
    rows = np.linspace(box.top + 1, max(box.bottom - 1, box.top + 1), 9)
    outline = [
        *((column, rows[0]) for column in columns),
        *((columns[-1], row) for row in rows[1:]),
        *((column, rows[-1]) for column in columns[-2::-1]),
        *((columns[0], row) for row in rows[-2:0:-1]),
    ]
    points = [image.grid.transform @ point for point in outline]
    if image.grid.crs != crs:
        moved = transform(image.grid.crs, crs, *zip(*points, strict=True))
        points = list(zip(*moved, strict=True))
    return shapely.Polygon(points)


def _with_stretches(domain: OwnDomain, images: Sequence[OwnImage], parts: Sequence[Part]) -> list[OwnImage]:
    """Return the images; rasters that are read in several parts get the stretch of the whole raster."""
    if domain.percentiles is None:
        return list(images)
    count = [0] * len(images)
    for number, box, _ in parts:
        count[number] += (len(tile_edges(box.right - box.left, domain.tile)) - 1) * (
            len(tile_edges(box.bottom - box.top, domain.tile)) - 1
        )
    progress, found = Progress(len(images), "rasters"), list[OwnImage]()
    for image, tiles in zip(images, count, strict=True):
        found.append(image.with_stretch() if isinstance(image, Raster) and tiles > 1 else image)
        progress.advance(note=f"{domain.key}: range of values")
    return found


def _pieces(
    domain: OwnDomain,
    split: Split,
    parts: Sequence[Part],
    pairs: Sequence[Pair],
    images: Sequence[OwnImage],
    truths: Sequence[Truth],
) -> list[Piece]:
    pieces = list[Piece]()
    for number, group in itertools.groupby((part for part in parts if part[2] == split), key=lambda part: part[0]):
        image, name = images[number], pairs[number].key or pairs[number].image.stem
        rows = [row for _, box, _ in group for row in _tiles(name, box, domain.tile, image.size)]
        if isinstance(image, Picture):
            chunks = [tuple(itertools.chain(*rows))]
        else:
            chunks = [chunk for row in rows for chunk in itertools.batched(row, _TOGETHER)]
        pieces += [Piece(image, truths[number], chunk) for chunk in chunks]
    return pieces


def _tiles(name: str, box: Box, tile: int, size: tuple[int, int]) -> Iterator[list[tuple[str, Box]]]:
    """Yield the rows of tiles (id and position) of a part of an image."""
    columns = [box.left + edge for edge in tile_edges(box.right - box.left, tile)]
    rows = [box.top + edge for edge in tile_edges(box.bottom - box.top, tile)]
    for top, bottom in itertools.pairwise(rows):
        boxes = [Box(left, top, right, bottom) for left, right in itertools.pairwise(columns)]
        yield [
            (
                name
                if (b.bottom - b.top, b.right - b.left) == size
                else f"{name}_{b.left}_{b.top}_{b.right}_{b.bottom}",
                b,
            )
            for b in boxes
        ]


def _bands(domain: OwnDomain, images: Sequence[OwnImage]) -> tuple[str, str, str]:
    for image in images[1:]:
        if image.bands != images[0].bands:
            raise UserError(
                f"{domain.key}: {images[0].path} has the bands {', '.join(images[0].bands)}, {image.path} has"
                f" {', '.join(image.bands)}; choose three bands that all images have with bands = […]"
            )
    return images[0].bands


def _gsd(domain: OwnDomain, images: Sequence[OwnImage]) -> float | None:
    """Return the stated ground resolution, or the one that all images share; None if they differ."""
    if domain.gsd is not None:
        return domain.gsd
    sizes = [image.grid.pixel_size() if isinstance(image, Raster) else None for image in images]
    known = [math.sqrt(size[0] * size[1]) for size in sizes if size]
    if len(known) < len(sizes) or max(known) > min(known) * (1 + _AGREE):
        return None
    return float(f"{np.median(known):.4g}")


def source_files(domain: OwnDomain, pairs: Sequence[Pair] | None = None) -> list[Path]:
    """Return every file that determines the records of the domain.

    Raises:
      UserError: see `own_files.find_pairs`.
    """
    pairs = own_files.find_pairs(domain) if pairs is None else pairs
    files = {path for pair in pairs for path in (pair.image, pair.label) if path is not None}
    for stated in (domain.labels, domain.split):
        for value in (getattr(stated, field.name) for field in dataclasses.fields(stated)):
            if isinstance(value, Path):
                files |= _members(value)
    if domain.pairs is not None:
        files |= {*domain.pairs.rglob("metadata.jsonl"), *domain.pairs.rglob("metadata.csv")}
    return sorted(files)


def _members(path: Path) -> set[Path]:
    """Return all files of a folder, all parts of a Shapefile, or the single file."""
    if path.is_dir():
        return {file for file in path.rglob("*") if file.is_file()}
    return set(path.parent.glob(f"{path.stem}.*")) if path.suffix.lower() == ".shp" else {path}
