"""Read and check `domains.toml`, the description of a user's own domains, before any image is opened.

`read_domains_file` returns frozen dataclasses with absolute paths. Every error about a key is one line that names the
file, the line, the key and the expected value. docs/howto/own_dataset.md explains the keys.
"""

from __future__ import annotations

import colorsys
import dataclasses
import difflib
import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from crossearth_jax.benchmark import DOMAINS
from crossearth_jax.benchmark.facts import IGNORE, Taxonomy
from crossearth_jax.config import UserError
from crossearth_jax.runtime.buckets import local_path

Colour = tuple[int, int, int]  # RGB
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

TILE = 512  # pixels, default side of tiles
_TILES_PER_BLOCK = 2  # default side of a spatial block, in tiles
_BLOCKS_PER_SIDE = 5  # least number of blocks along the longest side of the rasters, by default
_SMALLEST_TILE = 32  # pixels
_MOST_CLASSES = 254  # train ids are 8 bit; 255 is ignored, and `data/labels.py` marks unknown values by 254


@dataclasses.dataclass(frozen=True, kw_only=True)
class NumberLabels:
    """Pictures or rasters with one class number per pixel."""

    files: tuple[str, ...]  # glob patterns; empty with the layout `imagefolder`
    table: Mapping[int, int]  # number in the files -> train id or IGNORE
    stated: bool  # whether the file states `ids`, or ignores 255 explicitly; else number i is class i, 255 is ignored


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColourLabels:
    """Pictures or rasters with one colour per class."""

    files: tuple[str, ...]  # glob patterns; empty with the layout `imagefolder`
    table: Mapping[Colour, int]  # colour in the files -> train id or IGNORE


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolygonRule:
    """Classes of named polygons, and the drawing order of overlapping ones."""

    names: Mapping[str, int]  # name in the file -> train id or IGNORE
    background: int  # train id of pixels that no polygon covers, or IGNORE
    order: tuple[int, ...]  # train ids from the lowest to the topmost; empty: a later polygon covers an earlier one


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorLabels:
    """Georeferenced polygons in a vector file."""

    file: Path
    layer: str | None  # name of the layer; None: the file has only one
    column: str | None  # column with the class names; None: every polygon has the class `single`
    single: int | None  # train id of all polygons
    rule: PolygonRule
    area: Path | None  # vector file of the labelled area; pixels outside its polygons are ignored; None: no limit


@dataclasses.dataclass(frozen=True, kw_only=True)
class CocoLabels:
    """Polygons (or masks) in the pixels of each image, as COCO's instance annotations store them."""

    file: Path
    rule: PolygonRule


@dataclasses.dataclass(frozen=True, kw_only=True)
class CvatLabels:
    """Export "Segmentation mask 1.1" of CVAT: SegmentationClass/*.png in the colours of labelmap.txt."""

    folder: Path
    names: Mapping[str, int]  # label in labelmap.txt -> train id or IGNORE


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelStudioLabels:
    """Export "Brush labels to PNG" of Label Studio, one black and white mask per region, beside its JSON export."""

    folder: Path  # of the PNG files
    tasks: Path  # JSON export with the image name of each task
    rule: PolygonRule


Labels = NumberLabels | ColourLabels | VectorLabels | CocoLabels | CvatLabels | LabelStudioLabels


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupSplit:
    """Split by a part of the file name: all images of a group are in one split."""

    group: str  # regular expression, matched at the start of the name without extension; its group 1 is the group name
    validation: tuple[str, ...]  # group names
    test: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListSplit:
    """Split by text files with one image name per line; without a list for `train`, all remaining images are in it."""

    train: Path | None
    validation: Path | None
    test: Path | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderSplit:
    """Split by the name of a folder that contains the image."""

    train: tuple[str, ...]  # folder names
    validation: tuple[str, ...]
    test: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockSplit:
    """Split by square spatial blocks, assigned at random."""

    validation: float  # share of the blocks
    test: float
    block: float | None  # side in metres; None: `default_block`
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomSplit:
    """Split by whole images, assigned at random."""

    validation: float  # share of the images
    test: float
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class WholeSplit:
    """Every image is in one split."""

    split: Split


SplitRule = GroupSplit | ListSplit | FolderSplit | BlockSplit | RandomSplit | WholeSplit


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnDomain:
    """One table `[domains.NAME]` of the file."""

    name: str
    dataset: str  # `DomainsFile.name`
    images: tuple[str, ...]  # glob patterns; empty with `pairs`
    pairs: Path | None  # folder in the layout of Hugging Face's imagefolder, whose metadata files list image and label
    labels: Labels
    split: SplitRule
    bands: str | None  # as --bands of predict
    band_names: tuple[str, str, str] | None  # names of the bands, if the file gives them
    value_range: tuple[float, float] | None  # as --range of predict
    percentiles: tuple[float, float] | None  # as --percentiles of predict
    gsd: float | None  # metres; georeferenced rasters are resampled to it, like --gsd of predict
    tile: int  # approximate side, in pixels, of the tiles that larger images are cut into
    off_by_one: bool  # whether a label may have one row or column more or less than its image
    description: str
    written: Mapping[str, Any]  # `table`: the table as written in the file; `classes`: the class names

    @property
    def key(self) -> str:
        """TFDS name: "<dataset>/<name>"."""
        return f"{self.dataset}/{self.name}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DomainsFile:
    """A whole `domains.toml`."""

    path: Path
    name: str  # of the dataset: the key `name`, else the file name without extension
    taxonomy: Taxonomy
    domains: Mapping[str, OwnDomain]

    def find(self, names: Sequence[str] | None = None) -> list[OwnDomain]:
        """Return the domains called `names`; without names, all domains.

        Raises:
          UserError: a name is not in the file.
        """
        for name in names or ():
            if name not in self.domains:
                raise UserError(f"{self.path} has no domain '{name}'{_meant(name, self.domains)}")
        return [self.domains[name] for name in (self.domains if names is None else names)]


def tile_edges(length: int, tile: int) -> list[int]:
    """Return the edges that cut a side of `length` pixels into equal parts of about `tile` pixels, without overlap.

    1024 pixels in tiles of 512 give [0, 512, 1024]. A side below 1.5 tiles stays whole; the parts of a longer side have
    3/4 to 5/4 of `tile`, rounded to whole pixels.
    """
    count = max(int(length / tile + 0.5), 1)
    return [round(index * length / count) for index in range(count + 1)]


def default_block(tile: int, longest: int) -> float:
    """Return the default side of spatial blocks in pixels; `longest` is the longest side of all rasters."""
    return min(float(_TILES_PER_BLOCK * tile), longest / _BLOCKS_PER_SIDE)


def read_domains_file(path: str | Path) -> DomainsFile:
    """Read and check a `domains.toml`.

    Raises:
      UserError: the file cannot be read, a key is unknown or missing, or a value is invalid.
    """
    path = local_path(path, "domains file", "copy it and the files that it names to a local disk")
    path = path.expanduser().resolve()
    try:
        text = path.read_text("utf-8")
        content = tomllib.loads(text)
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror}); expected a file like the examples in docs/howto/own_dataset.md"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(
            f"{path} is not valid TOML: {error}; put strings in quotes and write \\ in them as \\\\"
        ) from None
    root = _Table(content, (), path, text)
    name = root.text("name", path.stem)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise root.error(
            "name",
            f"the dataset would be called '{name}', expected a small letter, then small letters, digits and _;"
            ' add name = "my_dataset"',
        )
    if name in {domain.dataset for domain in DOMAINS.values()}:
        raise root.error("name", f'{name} is a dataset of the benchmark; choose another name with name = "my_{name}"')
    taxonomy, domains = _taxonomy(root.table("taxonomy"), name), root.table("domains")
    if not domains.value:
        raise domains.error("", "there is no domain; write a table [domains.my_city] with images and labels")
    found = {}
    for key in domains.value:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", key):
            raise domains.error(
                key, "the name of a domain may have letters, digits, - and _, first a letter or digit; choose another"
            )
        found[key] = _domain(domains.table(key), key, taxonomy)
    root.finish()
    return DomainsFile(path=path, name=name, taxonomy=taxonomy, domains=found)


class _Table:
    """A table of the file: returns values of the requested type and finds the keys that were never requested."""

    def __init__(self, value: Mapping[str, Any], keys: tuple[str, ...], path: Path, text: str):
        self.value, self.folder = value, path.parent  # paths in the file are relative to its folder
        self._keys, self._path, self._text = keys, path, text
        self._known = list[str]()

    def error(self, key: str, problem: str) -> UserError:
        """Return an error about `key` of this table ("": about the table itself)."""
        keys = (*self._keys, key) if key else self._keys
        line = _line(self._text, keys)
        where = f", line {line}" if line else ""
        return UserError(f"{self._path}{where}, {'.'.join(keys)}: {problem}")

    def take(self, key: str, expected: str, test: Callable[[Any], Any], default: Any = ...) -> Any:
        """Return the value of `key` if it passes `test`; the key is required if `default` is `...`."""
        self._known.append(key)
        value = self.value.get(key, ...)
        if value is ...:
            if default is ...:
                unknown = difflib.get_close_matches(key, self.value, n=1)
                hint = f" (is '{unknown[0]}' a misspelling of it?)" if unknown else ""
                raise self.error(key, f"is missing, expected {expected}{hint}")
            return default
        if not test(value):
            raise self.error(key, f"found {_shown(value)}, expected {expected}")
        return value

    def text(self, key: str, default: Any = ..., expected: str = "a string in quotes") -> Any:
        """Return a non-empty string."""
        return self.take(key, expected, lambda value: isinstance(value, str) and value.strip(), default)

    def texts(self, key: str, default: Any = ..., expected: str = "a string or a list of strings") -> tuple[str, ...]:
        """Return one string or a list of strings as a tuple."""

        def test(value: Any) -> bool:
            several = value if isinstance(value, list) else [value]
            return bool(several) and all(isinstance(item, str) and item.strip() for item in several)

        value = self.take(key, expected, test, default)
        return (value,) if isinstance(value, str) else tuple(value)

    def number(self, key: str, default: Any, expected: str, test: Callable[[Any], bool]) -> Any:
        """Return a number; true and false are refused."""

        def right(value: Any) -> bool:
            return isinstance(value, int | float) and not isinstance(value, bool) and test(value)

        return self.take(key, expected, right, default)

    def whole(self, key: str, default: int, least: int) -> int:
        """Return an integer of at least `least`."""
        return self.number(
            key, default, f"a whole number of {least} or more", lambda v: isinstance(v, int) and v >= least
        )

    def share(self, key: str, default: Any = ...) -> float:
        """Return a number of at least 0 and less than 1."""
        return float(self.number(key, default, "a share from 0 to less than 1, such as 0.25", lambda v: 0 <= v < 1))

    def length(self, key: str, expected: str) -> float | None:
        """Return a positive number of metres; None if the key is absent."""
        value = self.number(key, None, expected, lambda v: 0 < v < float("inf"))
        return None if value is None else float(value)

    def flag(self, key: str) -> bool:
        """Return true or false; false if the key is absent."""
        return self.take(key, "true or false", lambda value: isinstance(value, bool), False)

    def table(self, key: str, default: Any = ...) -> _Table:
        """Return a table, written in brackets or braces."""
        value = self.take(key, f"a table [{'.'.join((*self._keys, key))}]", lambda v: isinstance(v, dict), default)
        return _Table(value, (*self._keys, key), self._path, self._text)

    def finish(self) -> None:
        """Raise an error if a key was never requested."""
        for key in self.value:
            if key not in self._known:
                raise self.error(key, f"unknown key{_meant(key, self._known)}")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _meant(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}"


def _line(text: str, keys: Sequence[str]) -> int | None:
    """Return the number of the line that sets `keys`, or of the innermost table around them; None if not found."""
    found, section = dict[tuple[str, ...], int](), ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+([^\[\]=]+)\]+\s*(#.*)?$", line):
            section = tuple(part.strip().strip("\"'") for part in header[1].split("."))
            found.setdefault(section, number)
        elif key := re.match(r"\s*([\w\-.\"' ]+?)\s*=", line):
            found.setdefault((*section, *(part.strip().strip("\"'") for part in key[1].split("."))), number)
    prefixes = [tuple(keys[:length]) for length in range(len(keys), 0, -1)]
    return next((found[prefix] for prefix in prefixes if prefix in found), None)


def _taxonomy(table: _Table, name: str) -> Taxonomy:
    def several(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(item, str) and item.strip() for item in value)

    classes = table.take("classes", 'a list of names such as ["building", "road"]', several)
    if not 2 <= len(classes) <= _MOST_CLASSES:
        raise table.error(
            "classes", f"{len(classes)} are given, expected 2 to {_MOST_CLASSES}, including one for the background"
        )
    if len(set(classes)) < len(classes):
        raise table.error("classes", f"{_repeated(classes)} is given twice; give each class its own name")
    palette = table.take("palette", 'a list of colours such as ["#c83c3c"]', several, None)
    if palette is None:
        colours = _palette(len(classes))
    elif len(palette) != len(classes):
        raise table.error("palette", f"{len(palette)} colours for {len(classes)} classes; give one for each")
    else:
        colours = tuple(_colour(table, "palette", text) for text in palette)
    table.finish()
    return Taxonomy(name=name, classes=tuple(classes), palette=colours)


def _palette(count: int) -> tuple[Colour, ...]:
    """Return colours that differ in hue, with three alternating levels of brightness."""

    def colour(index: int) -> Colour:
        hue, value = index * 0.618 % 1, (0.9, 0.65, 0.45)[index % 3]
        red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, value))
        return red, green, blue

    return tuple(map(colour, range(count)))


def _repeated(values: Sequence[str]) -> str:
    return next(value for index, value in enumerate(values) if value in values[:index])


def _colour(table: _Table, key: str, text: Any) -> Colour:
    if not (isinstance(text, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", text)):
        raise table.error(key, f'found {_shown(text)}, expected a colour such as "#c83c3c"')
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def _domain(table: _Table, name: str, taxonomy: Taxonomy) -> OwnDomain:
    layouts = [key for key in ("images", "mmseg", "imagefolder") if key in table.value]
    if len(layouts) != 1:
        found = f"found {' and '.join(layouts)}" if layouts else "none is given"
        raise table.error("", f"{found}, expected one of images (with labels), mmseg and imagefolder")
    images, pairs, files, split = (), None, (), WholeSplit(split="test")
    if layouts == ["images"]:
        images = _patterns(table, table.texts("images", expected="a pattern or a list of them, such as 'city/*.tif'"))
    elif layouts == ["mmseg"]:
        root = table.folder / table.text("mmseg")
        images, files, split = _mmseg(table, root)
    else:
        pairs = table.folder / table.text("imagefolder")
        if not pairs.is_dir():
            raise table.error("imagefolder", f"{pairs} is not a folder; name the folder that contains train/ and test/")
        split = FolderSplit(train=("train",), validation=("validation", "valid", "val", "dev"), test=("test",))
    written = {"table": dict(table.value), "classes": list(taxonomy.classes)}
    domain = OwnDomain(
        name=name,
        dataset=taxonomy.name,
        images=images,
        pairs=pairs,
        labels=_labels(table, taxonomy, files, by_layout=layouts != ["images"]),
        split=_split(table) if "split" in table.value else split,
        **_bands(table),
        **_range(table),
        gsd=table.length("gsd", "metres per pixel, more than 0"),
        tile=table.whole("tile", TILE, _SMALLEST_TILE),
        off_by_one=table.flag("off_by_one"),
        description=table.text("description", f"{name} of {taxonomy.name}"),
        written=written,
    )
    table.finish()
    return domain


def _patterns(table: _Table, patterns: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(Path(table.folder, Path(pattern).expanduser())) for pattern in patterns)


def _mmseg(table: _Table, root: Path) -> tuple[tuple[str, ...], tuple[str, ...], SplitRule]:
    """Return patterns of images and labels, and the split, for `{img_dir,ann_dir}/{train,val,test}`.

    Without labels in `ann_dir/test`, `val` becomes the test split.
    """
    for part in ("img_dir", "ann_dir"):
        if not (root / part / "train").is_dir() and not (root / part / "val").is_dir():
            raise table.error(
                "mmseg", f"{root} has no {part}/train and no {part}/val; name the folder that contains {part}"
            )
    tested = (root / "ann_dir" / "test").is_dir() and any((root / "ann_dir" / "test").iterdir())
    split = FolderSplit(train=("train",), validation=("val",) if tested else (), test=("test",) if tested else ("val",))
    used = (*split.train, *split.validation, *split.test)
    images, labels = ([str(Path(root, part, name, "**", "*")) for name in used] for part in ("img_dir", "ann_dir"))
    return tuple(images), tuple(labels), split


def _bands(table: _Table) -> dict[str, Any]:
    """Return bands as one string, as --bands of predict takes them, and their names if the table gives them."""

    def test(value: Any) -> bool:
        several = value.split(",") if isinstance(value, str) else list(value) if isinstance(value, list) else []
        if isinstance(value, dict):
            several = value.values()
        right = all(
            isinstance(item, str | int) and not isinstance(item, bool) and str(item).strip() for item in several
        )
        return right and len(several) in ((3,) if isinstance(value, dict) else (1, 3))

    expected = 'three names or numbers such as ["nir", "red", "green"] or { nir = 4, red = 3, green = 2 }, or one'
    value = table.take("bands", expected, test, None)
    if value is None or isinstance(value, str):
        return {"bands": value, "band_names": None}
    if isinstance(value, dict):
        return {"bands": ",".join(map(str, value.values())), "band_names": tuple(value)}
    return {"bands": ",".join(map(str, value)), "band_names": None}


def _range(table: _Table) -> dict[str, Any]:
    text = table.text("range", None, '"p2,p98" (percentiles) or "0,3000" (values)')
    if text is None:
        return {"value_range": None, "percentiles": None}
    number = r"\s*(-?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)\s*"
    values, percentiles = re.fullmatch(f"{number},{number}", text), re.fullmatch(rf"\s*p{number},\s*p{number}", text)
    match = values or percentiles
    if match is None:
        raise table.error("range", f'found "{text}", expected "p2,p98" (percentiles) or "0,3000" (values)')
    low, high = float(match[1]), float(match[2])
    if not low < high or (percentiles and not (0 <= low and high <= 100)):
        raise table.error("range", f'found "{text}", expected the smaller number first, and percentiles from 0 to 100')
    return {"value_range": (low, high) if values else None, "percentiles": (low, high) if percentiles else None}


def _labels(domain: _Table, taxonomy: Taxonomy, files: tuple[str, ...], *, by_layout: bool) -> Labels:
    """Return the labels of a domain.

    Args:
      domain: table of the domain.
      taxonomy: classes.
      files: patterns of label files that the folder layout defines.
      by_layout: whether a folder layout (mmseg or imagefolder) defines the label files.
    """
    if by_layout and "labels" not in domain.value:
        return NumberLabels(files=files, table=_plain_numbers(taxonomy), stated=False)
    domain.take(
        "labels", "a pattern such as 'city/label/*.png', or a table", lambda v: isinstance(v, str | list | dict)
    )
    if not isinstance(domain.value["labels"], dict):
        if by_layout:
            raise domain.error("labels", "the folder layout defines the label files, expected a table without files")
        files = _patterns(domain, domain.texts("labels"))
        return NumberLabels(files=files, table=_plain_numbers(taxonomy), stated=False)
    table = domain.table("labels")
    kinds = [kind for kind in ("files", "vector", "coco", "cvat", "label_studio") if kind in table.value]
    if len(kinds) > 1 or (not kinds and not by_layout) or (kinds and by_layout):
        expected = (
            "no label files, since the folder layout defines them"
            if by_layout
            else "one of files, vector, coco, cvat and label_studio"
        )
        raise table.error("", f"found {' and '.join(kinds) or 'none'}, expected {expected}")
    kind = kinds[0] if kinds else "files"
    if kind == "files":
        files = files if by_layout else _patterns(table, table.texts("files"))
        labels = _pixel_labels(table, taxonomy, files)
    elif kind == "vector":
        labels = _vector_labels(table, taxonomy)
    elif kind == "coco":
        labels = CocoLabels(file=_existing(table, "coco"), rule=_polygon_rule(table, taxonomy))
    elif kind == "cvat":
        labels = CvatLabels(folder=_existing(table, "cvat"), names=_names(table, taxonomy))
    else:
        labels = LabelStudioLabels(
            folder=_existing(table, "label_studio"),
            tasks=_existing(table, "tasks"),
            rule=_polygon_rule(table, taxonomy),
        )
    table.finish()
    return labels


def _existing(table: _Table, key: str) -> Path:
    path = table.folder / Path(table.text(key)).expanduser()
    if not path.exists():
        raise table.error(key, f"{path} does not exist; paths are relative to the folder of this file")
    return path


def _plain_numbers(taxonomy: Taxonomy) -> dict[int, int]:
    return {**{index: index for index in range(len(taxonomy.classes))}, IGNORE: IGNORE}


def _pixel_labels(table: _Table, taxonomy: Taxonomy, files: tuple[str, ...]) -> NumberLabels | ColourLabels:
    if "colours" in table.value and "ids" in table.value:
        raise table.error("", "colours and ids are both given, expected one of them")
    ignored = table.take("ignore", "a list of numbers or colours", lambda value: isinstance(value, list), [])
    if "colours" in table.value:
        stated = _by_class(table, "colours", taxonomy, lambda item: _colour(table, "colours", item))
        colours = {**stated, **{_colour(table, "ignore", item): IGNORE for item in ignored}}
        return ColourLabels(files=files, table=colours)

    def number(key: str, item: Any) -> int:
        if not isinstance(item, int) or isinstance(item, bool):
            raise table.error(key, f"found {_shown(item)}, expected a whole number")
        return item

    stated = _by_class(table, "ids", taxonomy, lambda item: number("ids", item)) if "ids" in table.value else None
    numbers = _plain_numbers(taxonomy) if stated is None else {IGNORE: IGNORE, **stated}
    numbers.update({number("ignore", item): IGNORE for item in ignored})
    return NumberLabels(files=files, table=numbers, stated=stated is not None or IGNORE in ignored)


def _by_class(table: _Table, key: str, taxonomy: Taxonomy, read: Any) -> dict[Any, int]:
    """Return the table `key`, {class = value or [values]}, as value -> train id."""
    found = dict[Any, int]()
    for name, value in table.table(key).value.items():
        index = _class(table, key, name, taxonomy)
        for item in value if isinstance(value, list) else [value]:
            if found.setdefault(read(item), index) != index:
                raise table.error(key, f"{_shown(item)} is given for two classes; give it to one")
    return found


def _class(table: _Table, key: str, name: Any, taxonomy: Taxonomy) -> int:
    if name not in taxonomy.classes:
        raise table.error(key, f"{_shown(name)} is not in taxonomy.classes{_meant(str(name), taxonomy.classes)}")
    return taxonomy.classes.index(name)


def _names(table: _Table, taxonomy: Taxonomy) -> dict[str, int]:
    """Return class name in the label file -> train id; a class has its own name unless `classes` gives another one."""
    found = {name: index for index, name in enumerate(taxonomy.classes)}
    given = table.table("classes", {}).value
    for name, target in given.items():
        found[name] = _class(table, "classes", target, taxonomy)
    return {**found, **{name: IGNORE for name in table.texts("ignore", ())}}


def _polygon_rule(table: _Table, taxonomy: Taxonomy) -> PolygonRule:
    background, order = table.text("background", None, "the name of a class"), table.texts("order", ())
    return PolygonRule(
        names=_names(table, taxonomy),
        background=IGNORE if background is None else _class(table, "background", background, taxonomy),
        order=tuple(_class(table, "order", name, taxonomy) for name in order),
    )


def _vector_labels(table: _Table, taxonomy: Taxonomy) -> VectorLabels:
    if ("column" in table.value) == ("class" in table.value):
        raise table.error("", "expected either column (with the class of each polygon) or class (of all polygons)")
    single = table.text("class", None, "the name of a class")
    return VectorLabels(
        file=_existing(table, "vector"),
        layer=table.text("layer", None),
        column=table.text("column", None),
        single=None if single is None else _class(table, "class", single, taxonomy),
        rule=_polygon_rule(table, taxonomy),
        area=_existing(table, "area") if "area" in table.value else None,
    )


def _split(domain: _Table) -> SplitRule:
    if isinstance(domain.value["split"], str):
        name = domain.take(
            "split", '"train", "test" or a table such as { by = "group", … }', lambda v: v in ("train", "test")
        )
        return WholeSplit(split=name)
    table = domain.table("split")
    rules = {"group": _group_split, "list": _list_split, "folder": _folder_split, "block": _block_split,
             "random": _random_split}  # fmt: skip
    by = table.text("by", expected=f"one of {', '.join(rules)}")
    if by not in rules:
        raise table.error("by", f"found '{by}'{_meant(by, rules)}")
    rule = rules[by](table)
    table.finish()
    return rule


def _group_split(table: _Table) -> GroupSplit:
    pattern = table.text("group", expected="a regular expression such as 't(\\d+)_.*'")
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise table.error("group", f"'{pattern}' is not a regular expression ({error})") from None
    if groups != 1:
        raise table.error(
            "group", f"'{pattern}' has {groups} groups in parentheses, expected one, which names the group"
        )
    rule = GroupSplit(group=pattern, validation=table.texts("validation", ()), test=table.texts("test"))
    if both := set(rule.validation) & set(rule.test):
        raise table.error("test", f"'{min(both)}' is in validation too; name each group once")
    return rule


def _list_split(table: _Table) -> ListSplit:
    given = {name: _existing(table, name) for name in SPLITS if name in table.value}
    if not given:
        raise table.error("", "no list is given; name a text file for train, validation or test")
    return ListSplit(**{name: given.get(name) for name in SPLITS})


def _folder_split(table: _Table) -> FolderSplit:
    return FolderSplit(
        train=table.texts("train", ("train",)),
        validation=table.texts("validation", ("val", "validation")),
        test=table.texts("test", ("test",)),
    )


def _shares(table: _Table) -> dict[str, Any]:
    shares = {"validation": table.share("validation", 0.0), "test": table.share("test")}
    if sum(shares.values()) >= 1:
        raise table.error("test", f"test and validation add up to {sum(shares.values()):g}, expected less than 1")
    return {**shares, "seed": table.whole("seed", 0, 0)}


def _block_split(table: _Table) -> BlockSplit:
    return BlockSplit(**_shares(table), block=table.length("block", "the side of a block in metres, more than 0"))


def _random_split(table: _Table) -> RandomSplit:
    return RandomSplit(**_shares(table))
