"""Find images and their labels among the files of a dataset by their names."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from .archives import Member

Role = Literal["image", "label"]
_ENDINGS = {"tif": r"tiff?", "tiff": r"tiff?", "jpg": r"jpe?g"}  # both spellings of an extension are accepted


@dataclasses.dataclass(frozen=True)
class Scene:
    """An image with its label."""

    id: str
    image: Member
    label: Member


@dataclasses.dataclass(frozen=True)
class Layout:
    """Naming scheme of images and labels: templates for the end of their paths.

    `{id}` stands for the id of the scene, `**/` for any folders. Upper and lower case are equal. A template must not
    match other files of the dataset's archives; it includes the folder where the file name alone is ambiguous.
    """

    image: str
    label: str
    id: str = r"[^/]+?"  # regular expression of `{id}`
    exclude: str = ""  # regular expression; paths that match it are skipped

    def scene_of(self, role: Role, path: str) -> str | None:
        """Return the id of the scene whose image or label is `path`; None if the path does not match."""
        if self.exclude and re.search(self.exclude, path, re.IGNORECASE):
            return None
        match = _pattern(self._template(role), self.id).search(path)
        return match["id"] if match else None

    def example(self, role: Role, key: str) -> str:
        """Return an example of the file name for scene `key`."""
        return self._template(role).replace("**/", "").replace("{id}", key)

    def _template(self, role: Role) -> str:
        return self.image if role == "image" else self.label


@dataclasses.dataclass(frozen=True)
class Found:
    """Scenes sorted by id, and faults (missing or contradictory files)."""

    scenes: Sequence[Scene] = ()
    faults: Sequence[str] = ()


def find(files: Iterable[Member], layout: Layout, only: Iterable[str] | None = None) -> Found:
    """Find the scenes of one layout among `files`.

    Args:
      files: files of the dataset.
      layout: names of images and labels.
      only: ids of the wanted scenes; None: all.

    Raises:
      UserError: two files match the same scene and cannot be read to compare them.
    """
    files, faults = list(files), list[str]()
    wanted = None if only is None else {name.casefold(): name for name in only}
    images, labels = (_by_key(files, layout, role, wanted, faults) for role in get_args(Role))
    sides: tuple[tuple[Role, dict, dict], ...] = (("label", images, labels), ("image", labels, images))
    for missing, own, other in sides:
        for key in sorted(own.keys() - other.keys(), key=natural):
            name, member = own[key]
            faults.append(f"{layout.example(missing, name)} is missing, which belongs to {member.path}")
    ids = sorted(images.keys() & labels.keys(), key=natural)
    return Found([Scene(images[key][0], images[key][1], labels[key][1]) for key in ids], faults)


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """Return a sort key that puts area2 before area10."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name))


def _by_key(
    files: Sequence[Member], layout: Layout, role: Role, wanted: dict[str, str] | None, faults: list[str]
) -> dict[str, tuple[str, Member]]:
    """Return {id in lower case: (id, file)}; append different files for one id to `faults`."""
    found = dict[str, tuple[str, Member]]()
    for member in files:
        name = layout.scene_of(role, member.path)
        key = "" if name is None else name.casefold()
        if name is None or (wanted is not None and key not in wanted):
            continue
        name = name if wanted is None else wanted[key]
        if key not in found:
            found[key] = name, member
        elif not found[key][1].same_content(member):
            faults.append(
                f"{found[key][1].path} and {member.path} may both be the {role} of {name}, and differ; remove the wrong"
                " one"
            )
        elif not member.inside:  # an archive was also unpacked; loose files are faster to read
            found[key] = name, member
    return found


@functools.lru_cache(maxsize=64)
def _pattern(template: str, id_pattern: str) -> re.Pattern[str]:
    stem, _, ending = template.rpartition(".")
    escaped = re.escape(stem).replace(re.escape("**/"), "(?:.*/)?")
    named = escaped.replace(re.escape("{id}"), f"(?P<id>{id_pattern})", 1)
    return re.compile(rf"(?:^|/){named}\.{_ENDINGS.get(ending, ending)}$", re.IGNORECASE)
