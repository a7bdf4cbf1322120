"""Shared by Potsdam and Vaihingen: colours, stored class numbers, splits by scene, tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, cast

from crossearth_jax.benchmark import IGNORE, TAXONOMIES

from .archives import Member
from .building import Option
from .labels import NEAREST, Colour, Colours
from .layouts import Layout, Scene, find, natural
from .tiles import Cut

CUT = Cut(512)
UNDEFINED = (0, 0, 0)  # the eroded boundaries
COLOURS: dict[Colour, int] = {
    UNDEFINED: IGNORE,
    **{colour: label for label, colour in enumerate(TAXONOMIES["isprs"].palette)},
}
STORED = {0: IGNORE, **{label + 1: label for label in range(6)}}  # number in tiles of the authors' converters -> id
UNKNOWN_COLOURS = Option(
    "unknown_colours",
    ("nearest", "ignored", "error"),
    f"how colours outside the palette are read: as the nearest colour, at most {NEAREST} away; as ignored, like the"
    " reference converter, which stores 0 for them; or refused",
)


def colour_rule(dataset: str, table: Mapping[Colour, int], options: Mapping[str, str]) -> Colours:
    """Return the rule for the coloured labels of the official archives."""
    unknown = cast(Literal["nearest", "ignored", "error"], options[UNKNOWN_COLOURS.name])
    remedy = {
        "nearest": f"leave such pixels out with --option {dataset}.{UNKNOWN_COLOURS.name}=ignored",
        "error": f"take the nearest colours with --option {dataset}.{UNKNOWN_COLOURS.name}=nearest, or ignore such"
        " pixels with =ignored",
        "ignored": "",
    }
    return Colours(table, unknown, remedy[unknown])


def find_scenes(
    files: Sequence[Member], layout: Layout, ids: Mapping[str, Sequence[str]]
) -> tuple[dict[str, Sequence[Scene]], list[str]]:
    """Find the scenes of the official archives; return them by split, and faults."""
    found = {split: find(files, layout, only) for split, only in ids.items()}
    return {split: part.scenes for split, part in found.items()}, [f for part in found.values() for f in part.faults]


def tile_layout(folder: str, scene: str, split: str) -> Layout:
    """Return the layout of the tiles that the authors' converter writes for one split (see `find_tiles`)."""
    image, label = (f"{folder}{kind}/{split}/{{id}}.png" for kind in ("img_dir", "ann_dir"))
    return Layout(image, label, id=rf"{scene}(?:_\d+){{4}}")


def find_tiles(
    files: Sequence[Member], folder: str, scene: str, ids: Mapping[str, Sequence[str]]
) -> tuple[dict[str, Sequence[Scene]], list[str]]:
    """Find tiles written by the authors' converter; return them by split, and faults.

    A tile in the folder of the wrong split is a fault.

    Args:
      files: files of the dataset.
      folder: folder that contains `img_dir` and `ann_dir`, ending in "/", or "".
      scene: regular expression of scene ids.
      ids: scenes of each split.
    """
    splits, faults = dict[str, Sequence[Scene]](), list[str]()
    owner = {name: split for split, names in ids.items() for name in names}
    for split in ids:
        found = find(files, tile_layout(folder, scene, split))
        splits[split] = found.scenes
        faults += found.faults
        faults += [
            f"{tile.image.path} lies in the folder of split {split}, but its scene belongs to {other or 'no split'}"
            for tile in found.scenes
            if (other := owner.get(tile.id.rsplit("_", 4)[0])) != split
        ]
    return splits, faults


def absent(splits: Mapping[str, Sequence[Scene]], ids: Mapping[str, Sequence[str]]) -> list[str]:
    """Return one message for each split with missing scenes, with their ids."""
    notes = []
    for split, names in ids.items():
        missing = set(names) - {scene.id for scene in splits.get(split, ())}
        if missing:
            notes.append(f"split {split} lacks the scenes {', '.join(sorted(missing, key=natural))}")
    return notes
