"""Find the files of a user's own domain: its images, the label of each image, and the image sizes."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import glob
import json
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from crossearth_jax.benchmark import domains_file
from crossearth_jax.benchmark.domains_file import BlockSplit, ColourLabels, CvatLabels, NumberLabels, OwnDomain
from crossearth_jax.config import UserError
from crossearth_jax.runtime import picture_files

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")  # read by Pillow; every other file is a raster
_SIDECARS = (".xml", ".txt", ".json", ".csv", ".ovr", ".msk", ".tfw", ".jgw", ".pgw", ".wld", ".prj", ".db")
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # EXIF orientation tag, and its values that swap height and width
_SAMPLED = 512  # at most so many headers are read for `image_sizes`


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image and the file of its label."""

    key: str  # unique name of the image, usually the text that the wildcards of its pattern match
    image: Path
    label: Path | None  # None where the labels are not one file per image


@dataclasses.dataclass(frozen=True)
class ImageSizes:
    """Height and width, in pixels, of the tiles that the images of a domain are cut into."""

    smallest: tuple[int, int]  # minimum of each side
    typical: tuple[int, int]  # median of each side
    largest: tuple[int, int]


def find_pairs(domain: OwnDomain) -> list[Pair]:
    """Return the images of a domain with their labels.

    An image and a label belong together if the wildcards of their patterns match the same text
    (`a/*_img.png` and `b/*_mask.png`: the part before `_img` and `_mask`). If this text is not unique
    (`a/train/*.png`, `a/val/*.png`), the last folder without wildcards is added to it. If that gives no pairs either,
    file names without extension must be equal. A file that matches both patterns is a label.

    Raises:
      UserError: there is no image, an image has no label or a label no image, or two files have the same name.
    """
    if domain.pairs is not None:
        return _listed_pairs(domain, domain.pairs)
    labels = domain.labels
    if isinstance(labels, CvatLabels):
        patterns = (str(Path(labels.folder, "SegmentationClass", "**", "*.png")),)
    else:
        patterns = labels.files if isinstance(labels, NumberLabels | ColourLabels) else None
    images = _matches(domain, "images", domain.images)
    if patterns is None:
        kind = next((kind for kind in _KINDS if _distinct(images, kind)), 0)
        return [Pair(key, path, None) for key, path in _by_key(domain, images, kind).items()]
    found = _matches(domain, "labels", patterns)
    labelled = {match.file for match in found}
    images = [match for match in images if match.file not in labelled]
    if not images:
        raise UserError(f"{domain.key}: every file that matches images also matches labels; use different patterns")
    kind = next((kind for kind in _KINDS if _agree(images, found, kind)), 0)
    by_image, by_label = _by_key(domain, images, kind), _by_key(domain, found, kind)
    _refuse_alone(domain, "no label for image", by_image, by_label)
    _refuse_alone(domain, "no image for label", by_label, by_image)
    return [Pair(key, path, by_label[key]) for key, path in by_image.items()]


def image_sizes(domain: OwnDomain) -> ImageSizes:
    """Return the sizes of the tiles of a domain, computed from the headers of at most 512 of its images.

    Resampling to a stated ground resolution and spatial blocks of a stated side in metres are not taken into
    account; with them, the tiles may be smaller or larger.

    Raises:
      UserError: there is no image, or one cannot be read.
    """
    pairs = find_pairs(domain)
    sizes = [header_size(pair.image) for pair in pairs[:: -(-len(pairs) // _SAMPLED)]]
    if isinstance(domain.split, BlockSplit) and domain.split.block is None:
        block = int(domains_file.default_block(domain.tile, max(map(max, sizes))))
        sizes = [(min(height, block), min(width, block)) for height, width in sizes]
    tiles = np.array(
        [[_parts(side, domain.tile) for side in size] for size in sizes]
    )  # (images, 2 sides, least and most)
    smallest, largest = tiles[..., 0].min(axis=0), tiles[..., 1].max(axis=0)
    typical = np.median(tiles[..., 0], axis=0)
    return ImageSizes(*((int(side[0]), int(side[1])) for side in (smallest, typical, largest)))


def header_size(path: Path) -> tuple[int, int]:
    """Return height and width of a picture (after its EXIF rotation) or of a raster from its header.

    Raises:
      UserError: the file cannot be read.
    """
    if path.suffix.lower() not in PICTURES:
        return _raster_size(path)
    with opened_picture(path) as picture:
        turned = picture.getexif().get(_ORIENTATION, 1) in _TURNED
        return (picture.width, picture.height) if turned else (picture.height, picture.width)


@contextlib.contextmanager
def opened_picture(path: Path) -> Iterator[Image.Image]:
    """Open a picture to read its header.

    Raises:
      UserError: the file is damaged, or has more than `picture_files.MAX_PIXELS` pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is stricter
        try:
            with Image.open(path) as picture:
                if picture.width * picture.height > picture_files.MAX_PIXELS:
                    raise Image.DecompressionBombError(f"it has {picture.width} x {picture.height} pixels")
                yield picture
        except Image.DecompressionBombError as error:
            raise UserError(
                f"{path} is too large for a picture ({error}, at most {picture_files.MAX_PIXELS} in all); convert it to"
                " GeoTIFF, which is read in windows: gdal_translate -co TILED=YES"
            ) from None
        except (OSError, SyntaxError) as error:
            raise UserError(f"{path} cannot be read as a picture ({error}); replace or remove it") from None


def _raster_size(path: Path) -> tuple[int, int]:
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning, RasterioError
    except ModuleNotFoundError:
        raise without_geo(path) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as raster:
                return raster.height, raster.width
    except RasterioError as error:
        raise UserError(f"{path} cannot be read as a raster ({error}); replace or remove it") from None


def without_geo(path: Path) -> UserError:
    """Return the error for a raster that cannot be read because the extra `geo` is not installed."""
    return UserError(
        f"{path} is read by rasterio, which is not installed; install the extra geo:"
        " python -m uv pip install --python .venv -c constraints.txt -e '.[geo]'"
    )


def _parts(length: int, tile: int) -> tuple[int, int]:
    parts = np.diff(domains_file.tile_edges(length, tile))
    return int(parts.min()), int(parts.max())


@dataclasses.dataclass(frozen=True)
class _Match:
    """A file that matches a pattern, and three candidates for its key, in the order in which they are tried."""

    file: Path
    keys: tuple[str, str, str]  # text of the wildcards; the same after the last fixed folder; name without extension


_KINDS = range(3)  # indices of `_Match.keys`


def _matches(domain: OwnDomain, what: str, patterns: Sequence[str]) -> list[_Match]:
    found = list[_Match]()
    for pattern in map(_magic, patterns):
        fixed = next(part for part in reversed(Path(pattern).parts[:-1]) if not glob.has_magic(part))
        names = sorted(glob.glob(pattern, recursive=True))
        files = [Path(name) for name in names if os.path.isfile(name) and not name.lower().endswith(_SIDECARS)]
        expression = _capturing(pattern)
        for file in files:
            match = expression.fullmatch(str(file))
            parts = [part for part in match.groups() if part] if match else []
            key = ("/".join(parts) or file.stem) if parts else ""
            found.append(_Match(file, (key, f"{fixed}/{key}", file.stem)))
    if not found:
        raise UserError(f"{domain.key}: no file matches {what} = '{' '.join(patterns)}'{_nearby(Path(patterns[0]))}")
    return found


def _distinct(files: Sequence[_Match], kind: int) -> bool:
    return len({match.keys[kind] for match in files}) == len(files)


def _agree(images: Sequence[_Match], labels: Sequence[_Match], kind: int) -> bool:
    """Return whether this kind of key is unique among images and labels and pairs at least one image with a label."""
    common = {match.keys[kind] for match in images} & {match.keys[kind] for match in labels}
    return _distinct(images, kind) and _distinct(labels, kind) and bool(common)


def _magic(pattern: str) -> str:
    """Return a pattern for `glob` in which the leading folders that exist are escaped: they may contain `[` or `*`."""
    parts = Path(pattern).parts
    exist = next((n for n in range(len(parts)) if not Path(*parts[: n + 1]).exists()), len(parts))
    return str(Path(*map(glob.escape, parts[:exist]), *parts[exist:]))


def _nearby(folder: Path) -> str:
    """Return a hint for a pattern without matches: the innermost existing folder and what it contains."""
    while not folder.is_dir():
        folder = folder.parent
    names = sorted(entry.name for entry in folder.iterdir())[:3]
    return (
        f"; {folder} contains {', '.join(names) + ', …' if names else 'nothing'}"
        " (paths are relative to the folder of the TOML file)"
    )


def _capturing(pattern: str) -> re.Pattern[str]:
    """Return a `glob` pattern as a regular expression with a group per wildcard; a final `*` omits the extension."""
    parts, rest = list[str](), pattern
    while rest:
        if rest.startswith(f"**{os.sep}"):
            parts, rest = [*parts, rf"(?:(.*){re.escape(os.sep)})?"], rest[3:]
        elif rest[0] == "*":
            parts, rest = [*parts, rf"([^{re.escape(os.sep)}]*)"], rest[1:]
        elif rest[0] == "?":
            parts, rest = [*parts, rf"([^{re.escape(os.sep)}])"], rest[1:]
        elif match := re.match(r"\[([*?[])\]", rest):
            parts, rest = [*parts, re.escape(match[1])], rest[3:]
        elif match := re.match(r"\[(!?)([^\]]+)\]", rest):
            inverted = "^" if match[1] else ""
            parts, rest = [*parts, f"([{inverted}{match[2]}])"], rest[match.end() :]
        else:
            parts, rest = [*parts, re.escape(rest[0])], rest[1:]
    open_ended = r"(?:\.[^.]*)?" if pattern.endswith("*") else ""
    if open_ended:
        parts[-1] = rf"([^{re.escape(os.sep)}]*?)"
    return re.compile("".join(parts) + open_ended, re.DOTALL)


def _by_key(domain: OwnDomain, files: Sequence[_Match], kind: int) -> dict[str, Path]:
    found = dict[str, Path]()
    for match in files:
        key = match.keys[kind]
        if found.setdefault(key, match.file) != match.file:
            raise UserError(
                f"{domain.key}: {found[key]} and {match.file} have the same name '{key}'; use wildcards for the part"
                " that differs, or rename one"
            )
    return found


def _refuse_alone(domain: OwnDomain, what: str, own: dict[str, Path], other: dict[str, Path]) -> None:
    alone = [path for key, path in own.items() if key not in other]
    if alone:
        more = f" (and {len(alone) - 1} more)" if len(alone) > 1 else ""
        raise UserError(
            f"{domain.key}: {what} {alone[0]}{more}; a label needs the name of its image, apart from the fixed parts of"
            " the patterns"
        )


def _listed_pairs(domain: OwnDomain, folder: Path) -> list[Pair]:
    """Read the pairs from metadata.jsonl and metadata.csv files in the layout of Hugging Face's imagefolder."""
    tables = sorted([*folder.rglob("metadata.jsonl"), *folder.rglob("metadata.csv")])
    if not tables:
        raise UserError(
            f"{domain.key}: {folder} contains no metadata.jsonl or metadata.csv, which list images and labels; for"
            " plain folders of files use the keys images and labels"
        )
    pairs = list[Pair]()
    for table in tables:
        for row in _rows(table):
            columns = [name for name in row if name.endswith("file_name")]
            marked = [name for name in columns if re.search("label|mask|seg|annotation|output|target", name)]
            if len(columns) != 2 or len(marked) != 1:
                raise UserError(
                    f"{domain.key}: {table} has the columns {', '.join(row)}, expected one such as file_name or"
                    " image_file_name and one such as mask_file_name"
                )
            names = row[next(name for name in columns if name not in marked)], row[marked[0]]
            image, label = (table.parent / name for name in names)
            for what, path in (("no label for image", label), ("no image for label", image)):
                if not path.is_file():
                    raise UserError(f"{domain.key}: {what} {image if path == label else label}: {path} is missing")
            pairs.append(Pair(str(image.relative_to(folder).with_suffix("")), image, label))
    return pairs


def _rows(table: Path) -> list[dict[str, str]]:
    try:
        with table.open(encoding="utf-8", newline="") as lines:
            rows = (
                list(csv.DictReader(lines))
                if table.suffix == ".csv"
                else [json.loads(line) for line in lines if line.strip()]
            )
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{table} cannot be read ({error}); expected the metadata of an imagefolder") from None
    return [{str(key): str(value) for key, value in row.items()} for row in rows]
