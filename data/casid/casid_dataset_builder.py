"""TFDS builder of CASID: one configuration per climate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from crossearth_jax.benchmark import IGNORE

from ..archives import Member
from ..building import Catalogue, Option, SceneBuilder, configs_of
from ..conversion import Recipe
from ..detection import values_in
from ..labels import Numbers
from ..layouts import Layout, Scene, find
from ..tiles import Cut

FOLDERS = {"subms": "SubMs", "temms": "TemMs", "troms": "TroMs", "trorf": "TroRf"}
CONVENTIONS: Mapping[str, Mapping[int, int]] = {
    "0-4": {label: label for label in range(5)},
    "1-5": {0: IGNORE, **{label + 1: label for label in range(5)}},
}
_OTHER = {"0-4": "1-5", "1-5": "0-4"}


class Builder(SceneBuilder):
    """Tiles, 25 a scene: those of the authors as they are, whole scenes cut."""

    BUILDER_CONFIGS = configs_of("casid")
    OPTIONS: ClassVar[tuple[Option, ...]] = (
        Option("ids", ("detect", *CONVENTIONS), "numbers of the classes; with 1-5, 0 is ignored"),
        Option("tile", ("1000", "1024"), "side of the tiles that whole scenes are cut into; not published"),
    )

    def catalogue(self, files: Sequence[Member]) -> Catalogue:
        """Files below the climate's folder and below one named train, test, all_train or all_test."""
        climate = FOLDERS[self.domain.config]
        found = {}
        for split in self.domain.counts:
            names = (f"{climate}/**/{folder}/**/" for folder in (f"all_{split}", split))
            tries = [
                find(files, Layout(name + "{id}.png", name + "{id}-label.png", r"[^/]+?(?<!-label)")) for name in names
            ]
            found[split] = next((part for part in tries if part.scenes or part.faults), tries[0])
        splits = {split: part.scenes for split, part in found.items()}
        ids = self._ids(splits)
        tile = int(self.options["tile"])
        largest = self.domain.sizes["train"]
        remedy = f"if the classes are numbered differently: --option {self.name}.ids={_OTHER[ids]}"
        return Catalogue(
            splits,
            Recipe(Numbers(CONVENTIONS[ids], remedy), largest, Cut(tile, even=True), uncut=max(largest)),
            {"ids": ids, "tile": str(tile)},
            [fault for part in found.values() for fault in part.faults],
        )

    def _ids(self, splits: Mapping[str, Sequence[Scene]]) -> str:
        """The authors' code reads 0-4, their page says 1-5: a 5 anywhere tells."""
        if self.options["ids"] != "detect":
            return self.options["ids"]
        values = set().union(*(values_in(scenes) for scenes in splits.values()))
        return "1-5" if max(CONVENTIONS["1-5"]) in values else "0-4"
