"""Read exports of annotation tools: polygons of COCO files, colours of CVAT, masks of Label Studio."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import numpy as np
from jaxtyping import UInt8

from crossearth_jax.benchmark.domains_file import CocoLabels, Colour, CvatLabels, LabelStudioLabels, PolygonRule
from crossearth_jax.config import UserError

from ..labels import Colours
from ..tiles import Box
from .images import OwnImage, Raster
from .truth import Masks

_UNNAMED = "background"  # CVAT's name of pixels without an annotation
_MASK = re.compile(r"task-(\d+)-annotation-(\d+)-by-(.+?)(?:-(\d+))?$")  # names of Label Studio's PNG files
_PREFIX = re.compile(r"^[0-9a-f]{8}-")  # Label Studio adds it to the names of uploaded files


@dataclasses.dataclass(frozen=True)
class PixelPolygons:
    """Polygons and masks of one image, in pixels."""

    regions: tuple[tuple[str, Any], ...]  # class name, and segmentation as in COCO files
    rule: PolygonRule
    where: str  # file and image, for messages

    def read(self, image: OwnImage, box: Box) -> UInt8[np.ndarray, "h w"]:
        """See `truth.Truth`."""
        from rasterio.transform import Affine

        from . import polygons

        scale = ~image.source.transform @ image.grid.transform if isinstance(image, Raster) else Affine.identity()
        transform, size = scale @ Affine.translation(box.left, box.top), (box.bottom - box.top, box.right - box.left)
        rows, columns = image.source_pixels(box)
        shapes, ids = [], []
        for name, segmentation in self.regions:
            if isinstance(segmentation, dict):
                mask = self._mask(segmentation)[np.ix_(rows, columns)]
                drawn = polygons.traced(mask, transform)
            else:
                drawn = [polygons.area_of(ring, self.where) for ring in segmentation]
            shapes += drawn
            ids += [self.rule.names[name]] * len(drawn)
        return polygons.burnt(shapes, ids, self.rule, size, transform)

    def _mask(self, segmentation: dict[str, Any]) -> UInt8[np.ndarray, "h w"]:
        """Decode a run-length encoded mask: alternating numbers of zeros and ones, in column order."""
        counts, (height, width) = segmentation["counts"], segmentation["size"]
        if isinstance(counts, str):
            raise UserError(
                f"{self.where} has a compressed mask, expected polygons; export the annotations as polygons"
            )
        values = np.repeat(np.arange(len(counts), dtype=np.uint8) % 2, counts)
        return values.reshape(width, height).T


def coco_truth(labels: CocoLabels, images: Sequence[Path]) -> list[PixelPolygons]:
    """Return the annotations of each image; entries are matched to images by file name.

    Raises:
      UserError: the file is not a COCO file, a category is unknown, or images and entries do not match.
    """
    content = _json(labels.file, "COCO annotations")
    try:
        categories = {category["id"]: category["name"] for category in content["categories"]}
        entries = {entry["id"]: entry["file_name"] for entry in content["images"]}
        regions: dict[Any, list[tuple[str, Any]]] = {number: [] for number in entries}
        for one in content["annotations"]:
            if not one.get("segmentation"):
                raise UserError(
                    f"{labels.file}: annotation {one['id']} has no segmentation; export polygons, not boxes"
                )
            regions[one["image_id"]].append((categories[one["category_id"]], one["segmentation"]))
    except (KeyError, TypeError) as error:
        raise UserError(f"{labels.file} lacks {error} of COCO annotations; export it again as COCO") from None
    _refuse_unknown([name for found in regions.values() for name, _ in found], labels.rule, str(labels.file))
    by_image = _matched(entries, images, labels.file)
    return [
        PixelPolygons(tuple(regions[by_image[path]]), labels.rule, f"{labels.file} ({path.name})") for path in images
    ]


def cvat_rule(labels: CvatLabels) -> Colours:
    """Read the colours in CVAT's `labelmap.txt`; its label "background" is ignored unless a class has this name.

    Raises:
      UserError: the file is missing or malformed, or a label is unknown.
    """
    file = labels.folder / "labelmap.txt"
    try:
        lines = [line for line in file.read_text("utf-8").splitlines() if line.strip() and not line.startswith("#")]
    except OSError as error:
        raise UserError(
            f"cannot read {file} ({error.strerror}); unpack CVAT's export 'Segmentation mask 1.1'"
        ) from None
    rule = PolygonRule(names={_UNNAMED: 255, **labels.names}, background=255, order=())
    table = dict[Colour, int]()
    for line in lines:
        match = re.match(r"(.*):(\d+),(\d+),(\d+):[^:]*:[^:]*$", line)
        if match is None:
            raise UserError(f"{file} has the line '{line}', expected label:red,green,blue:: as CVAT writes it")
        name, red, green, blue = match.groups()
        _refuse_unknown([name], rule, str(file))
        table[int(red), int(green), int(blue)] = rule.names[name]
    return Colours(table)


def label_studio_truth(labels: LabelStudioLabels, images: Sequence[Path]) -> list[Masks]:
    """Return the masks of each image; if a task has several annotations, the last one is used.

    Raises:
      UserError: the JSON export cannot be read, the class of a mask is unknown, or images and tasks do not match.
    """
    tasks = _json(labels.tasks, "Label Studio's JSON export")
    if not isinstance(tasks, list) or not all(isinstance(task, dict) and "id" in task for task in tasks):
        raise UserError(f"{labels.tasks} is not a list of tasks; export the project again as JSON")
    entries = {str(task["id"]): _task_image(task, labels.tasks) for task in tasks}
    masks: dict[str, dict[int, list[tuple[int, int, Path]]]] = {task: {} for task in entries}
    for path in sorted(labels.folder.rglob("task-*.png")):
        match = _MASK.fullmatch(path.stem)
        if match is None or match[1] not in masks:
            raise UserError(f"{path} belongs to no task of {labels.tasks}; export both from the same project")
        fitting = [name for name in labels.rule.names if match[3].endswith(f"-{name}")]
        if not fitting:
            _refuse_unknown([match[3].rpartition("-")[2]], labels.rule, str(path))
        region = labels.rule.names[max(fitting, key=len)], int(match[4] or 0), path
        masks[match[1]].setdefault(int(match[2]), []).append(region)
    by_image = _matched(entries, images, labels.tasks)
    return [_stacked(masks[by_image[path]], labels.rule) for path in images]


def _stacked(annotations: dict[int, list[tuple[int, int, Path]]], rule: PolygonRule) -> Masks:
    height = {label: place for place, label in enumerate(rule.order, 1)} | {255: len(rule.order) + 1}
    last = annotations[max(annotations)] if annotations else []
    regions = sorted(last, key=lambda region: (height.get(region[0], 0), region[1]))
    return Masks(tuple((label, path) for label, _, path in regions), rule.background)


def _task_image(task: dict[str, Any], file: Path) -> str:
    """Return the name of the image file of a task."""
    stated = [value for value in task.get("data", {}).values() if isinstance(value, str)]
    where = task.get("file_upload") or next((value for value in stated if re.search(r"\.\w{3,4}$", value)), None)
    if where is None:
        raise UserError(f"{file}: task {task['id']} names no image file; export the project again as JSON")
    parts = urlparse(where)
    return _PREFIX.sub("", Path(unquote(parse_qs(parts.query).get("d", [parts.path])[0])).name)


def _json(file: Path, what: str) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); expected {what}") from None


def _matched(entries: dict[Any, str], images: Sequence[Path], file: Path) -> dict[Path, Any]:
    """Return {image: its entry}, matched by file name; if a name is not unique, by the end of the path."""
    by_name = dict[str, list[Any]]()
    for entry, name in entries.items():
        by_name.setdefault(Path(name).name, []).append(entry)
    found = dict[Path, Any]()
    for path in images:
        named = by_name.get(path.name) or by_name.get(_PREFIX.sub("", path.name), [])
        exact = [
            entry for entry in named if path.parts[-len(Path(entries[entry]).parts) :] == Path(entries[entry]).parts
        ]
        fitting = exact if len(named) > 1 else named
        if len(fitting) != 1:
            problem = "no label for image" if not fitting else f"{len(fitting)} entries for image"
            raise UserError(
                f"{file}: {problem} {path}; an entry must contain the image's file name, or the end of its path"
            )
        found[path] = fitting[0]
    if unused := entries.keys() - set(found.values()):
        raise UserError(f"{file}: no image for label {entries[min(unused)]} (and {len(unused) - 1} more)")
    return found


def _refuse_unknown(names: Sequence[str], rule: PolygonRule, where: str) -> None:
    from . import polygons

    polygons.refuse_unknown(names, rule, where)
