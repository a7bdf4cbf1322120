"""TFDS builder of CASID: one configuration per climate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from crossearth_jax.benchmark import IGNORE, TAXONOMIES
from crossearth_jax.config import UserError

from ..archives import Member
from ..building import Catalogue, Option, SceneBuilder, configs_of
from ..conversion import Recipe
from ..detection import histogram
from ..labels import Colours, LabelRule, Numbers
from ..layouts import Found, Layout, Scene, find
from ..tiles import Cut

FOLDERS = {"subms": "SubMs", "temms": "TemMs", "troms": "TroMs", "trorf": "TroRf"}
CONVENTIONS: Mapping[str, Mapping[int, int]] = {
    "0-4": {label: label for label in range(5)},
    "1-5": {0: IGNORE, **{label + 1: label for label in range(5)}},
}
_COLOURS = {colour: label for label, colour in enumerate(TAXONOMIES["casid"].palette)}
_BACKGROUND = 0.05  # share of zeros from which 0 must be the background class; in the convention 1-5, 0 is rare
_ID = r"[^/]+?(?<!-label)"
_NUMBERS = "numbers beside colours"


class Builder(SceneBuilder):
    """Tiles of the authors unchanged, or 25 tiles cut from each whole scene."""

    BUILDER_CONFIGS = configs_of("casid")
    OPTIONS: ClassVar[tuple[Option, ...]] = (
        Option(
            "ids", ("detect", *CONVENTIONS, "colours"), "class numbers in labels (with 1-5, 0 is ignored), or colours"
        ),
        Option("tile", ("1000", "1024"), "side of the tiles cut from whole scenes, in pixels; not published"),
    )

    def catalogue(self, files: Sequence[Member]) -> Catalogue:
        """Find files below the climate's folder and below a folder train, test, all_train or all_test."""
        layouts = self.layouts()
        found = {}
        for split in self.domain.counts:
            tries = [find(files, layout) for name, layout in layouts.items() if name.endswith(f" {split}")]
            kept = next((part for part in tries if part.scenes), None)
            found[split] = kept or next((part for part in tries if part.faults), Found())
        ids = {split: self._ids(part.scenes) for split, part in found.items() if part.scenes}
        labels = {split: self._rule(convention) for split, convention in ids.items()}
        tile, largest = int(self.options["tile"]), self.domain.sizes["train"]
        return Catalogue(
            splits={split: part.scenes for split, part in found.items()},
            recipe=Recipe(self._rule("0-4"), largest, Cut(tile, even=True), uncut=max(largest)),
            choices={**{f"ids of {split}": convention for split, convention in ids.items()}, "tile": str(tile)},
            faults=[fault for part in found.values() for fault in part.faults],
            labels=labels,
        )

    def layouts(self) -> dict[str, Layout]:
        """Return the layouts of both splits.

        Where labels exist both as numbers and as colours, the numbers are in the folder `label_id`; they are tried
        first.
        """
        layouts = {}
        for split in self.domain.counts:
            for folder in (f"all_{split}", split):
                root = f"{FOLDERS[self.domain.config]}/**/{folder}"
                image, label = f"{root}/**/{{id}}.png", f"{root}/**/{{id}}-label.png"
                layouts[f"{_NUMBERS}, {folder} of {split}"] = Layout(
                    image, f"{root}/**/label_id/{{id}}-label.png", id=_ID
                )
                layouts[f"{folder} of {split}"] = Layout(image, label, id=_ID, exclude="/label_id/")
        return layouts

    def _ids(self, scenes: Sequence[Scene]) -> str:
        """Detect the class numbers of a split: 0-4 as in the authors' code, or 1-5 as on their page.

        A 5 shows 1-5; a large share of zeros (the background) shows 0-4.

        Raises:
          UserError: the labels of the split show neither.
        """
        if self.options["ids"] != "detect":
            return self.options["ids"]
        counts = histogram(scenes)
        if not counts.any():
            return "colours"
        if counts[max(CONVENTIONS["1-5"])]:
            return "1-5"
        if counts[0] >= _BACKGROUND * counts.sum():
            return "0-4"
        raise UserError(
            f"{scenes[0].label.path} and the other labels of its split have no 5 and hardly any 0, so it is unclear"
            f" whether classes are numbered 0-4 or 1-5; choose --option {self.name}.ids=0-4 or {self.name}.ids=1-5"
        )

    def _rule(self, ids: str) -> LabelRule:
        if ids == "colours":
            return Colours(_COLOURS)
        other = next(convention for convention in CONVENTIONS if convention != ids)
        remedy = f"if the classes are numbered differently: --option {self.name}.ids={other}"
        return Numbers(CONVENTIONS[ids], remedy)
