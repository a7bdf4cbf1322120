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
_BACKGROUND = 0.05  # smallest share of 0 that is taken for the background; with 1-5, 0 is no class
_ID = r"[^/]+?(?<!-label)"
_NUMBERS = "numbers beside colours"


class Builder(SceneBuilder):
    """Tiles, 25 a scene: those of the authors as they are, whole scenes cut."""

    BUILDER_CONFIGS = configs_of("casid")
    OPTIONS: ClassVar[tuple[Option, ...]] = (
        Option(
            "ids", ("detect", *CONVENTIONS, "colours"), "numbers of the classes (with 1-5, 0 is ignored), or colours"
        ),
        Option("tile", ("1000", "1024"), "side of the tiles that whole scenes are cut into; not published"),
    )

    def catalogue(self, files: Sequence[Member]) -> Catalogue:
        """Files below the climate's folder and below one named train, test, all_train or all_test."""
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
        """A split whose labels exist as numbers and as colours has the numbers in the folder `label_id`."""
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
        """The authors' code reads 0-4, their page says 1-5: a 5 tells, and so does a background of 0.

        Raises:
          UserError: the labels of one split show neither.
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
            f"the labels beside {scenes[0].label.path} have no 5 and hardly any 0, so that they do not tell whether"
            f" classes are numbered 0-4 or 1-5; say it: --option {self.name}.ids=0-4 or --option {self.name}.ids=1-5"
        )

    def _rule(self, ids: str) -> LabelRule:
        if ids == "colours":
            return Colours(_COLOURS)
        other = next(convention for convention in CONVENTIONS if convention != ids)
        remedy = f"if the classes are numbered differently: --option {self.name}.ids={other}"
        return Numbers(CONVENTIONS[ids], remedy)
