"""Finding images and their labels among the files of a dataset by the names that its archives give them."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence

from .archives import Member


@dataclasses.dataclass(frozen=True)
class Scene:
    """An image with its label."""

    id: str
    image: Member
    label: Member


@dataclasses.dataclass(frozen=True)
class Layout:
    """How files are named; a path below the dataset's folder ends in `image` or `label`.

    `{id}` stands for the scene, `**/` for any folders. Upper and lower case are the same.
    """

    image: str
    label: str
    id: str = r"[^/]+?"  # regular expression

    def key(self, template: str, path: str) -> str | None:
        """The scene that `path` belongs to if it fits `template`."""
        match = _pattern(template, self.id).search(path)
        return match["id"] if match else None


@dataclasses.dataclass(frozen=True)
class Found:
    """Scenes in the order of their names, and what is odd."""

    scenes: Sequence[Scene] = ()
    faults: Sequence[str] = ()


def find(files: Iterable[Member], layout: Layout, only: Iterable[str] | None = None) -> Found:
    """The scenes of `files` in one layout.

    Args:
      files: of the dataset.
      layout: names of images and labels.
      only: ids of the scenes that are wanted; all if None.
    """
    files, wanted, faults = list(files), None if only is None else set(only), list[str]()
    sides = [_by_key(files, layout, template, wanted, faults) for template in (layout.image, layout.label)]
    images, labels = sides
    for own, other, template in ((images, labels, layout.label), (labels, images, layout.image)):
        for key in sorted(own.keys() - other.keys(), key=natural):
            faults.append(f"{_example(template, key)} is missing, which belongs to {own[key].path}")
    ids = sorted(images.keys() & labels.keys(), key=natural)
    return Found([Scene(key, images[key], labels[key]) for key in ids], faults)


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """Sorts area2 before area10."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name))


def _by_key(
    files: Sequence[Member], layout: Layout, template: str, wanted: set[str] | None, faults: list[str]
) -> dict[str, Member]:
    found = dict[str, Member]()
    for member in files:
        key = layout.key(template, member.path)
        if key is None or (wanted is not None and key not in wanted):
            continue
        if key in found and found[key].size != member.size:
            faults.append(
                f"{found[key].path} and {member.path} claim to be the same file and differ; remove one of them"
            )
        # An archive that was unpacked where it lies: loose files are faster to read.
        if key not in found or not member.inside:
            found[key] = member
    return found


def _example(template: str, key: str) -> str:
    return template.replace("**/", "").replace("{id}", key)


@functools.lru_cache(maxsize=64)
def _pattern(template: str, id_pattern: str) -> re.Pattern[str]:
    escaped = re.escape(template).replace(re.escape("**/"), "(?:.*/)?")
    return re.compile(f"(?:^|/){escaped.replace(re.escape('{id}'), f'(?P<id>{id_pattern})', 1)}$", re.IGNORECASE)
