"""TFDS builder of WHU Building: the aerial set and the Satellite II set (East Asia)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

from ..archives import Member
from ..building import Catalogue, Option, SceneBuilder, configs_of
from ..conversion import Recipe
from ..detection import mask_rule
from ..layouts import Found, Layout, find

THRESHOLD = 127  # in masks of 0 and 255, values above it are building
# No setting uses Satellite I (global cities).
_SATELLITE_I = r"global.cities"
# Names of the archive, of the folder inside it, of the folder of tiles without buildings, and of the authors' folders.
_SATELLITE_II = r"east.asia|satellite|cropped.image.data|(train|test)_(all|no)/"
_OFFICIAL_TEST = 2416  # images of the official aerial test split


class Builder(SceneBuilder):
    """Tiles of 512 x 512, not cut."""

    BUILDER_CONFIGS = configs_of("whu_building")
    OPTIONS: ClassVar[tuple[Option, ...]] = (
        Option(
            "test_folder",
            ("detect", "val", "test"),
            "official aerial split in the authors' folder `test` (with `label2`); detected from its number of images",
        ),
    )

    def catalogue(self, files: Sequence[Member]) -> Catalogue:
        """Find the tiles; folder names distinguish satellite from aerial tiles."""
        tries = {name: find(files, layout) for name, layout in self.layouts().items()}
        found, choices = self._satellite(tries) if self._is_satellite else self._aerial(tries)
        scenes = [scene for part in found.values() for scene in part.scenes]
        rule = mask_rule(scenes, THRESHOLD)
        return Catalogue(
            splits={split: part.scenes for split, part in found.items()},
            recipe=Recipe(rule, self.domain.sizes["train"]),
            choices={**choices, "masks": f"0 and {rule.bright}"},
            faults=[fault for part in found.values() for fault in part.faults],
        )

    def layouts(self) -> dict[str, Layout]:
        """Return the layouts, named "<official or authors>, <folder>"."""
        if self._is_satellite:
            folders = {"official": ("train", "train_no", "test", "test_no"), "authors": ("train_all", "test_all")}
            exclude = rf"{_SATELLITE_I}|^(?!.*(?:{_SATELLITE_II}))"
            labels = {"official": "label", "authors": "label"}
        else:
            folders = {"official": ("train", "val", "test"), "authors": ("train", "test")}
            exclude = rf"{_SATELLITE_I}|{_SATELLITE_II}"
            labels = {"official": "label", "authors": "label2"}
        return {
            f"{name}, {folder}": Layout(
                f"{folder}/image/{{id}}.tif", f"{folder}/{labels[name]}/{{id}}.tif", exclude=exclude
            )
            for name in folders
            for folder in folders[name]
        }

    @property
    def _is_satellite(self) -> bool:
        return self.domain.config == "satellite_ii"

    def _satellite(self, tries: Mapping[str, Found]) -> tuple[dict[str, Found], dict[str, str]]:
        """Join tiles with and without buildings, which the official archive keeps in separate folders."""
        repacked = {split: tries[f"authors, {split}_all"] for split in self.domain.counts}
        if any(part.scenes for part in repacked.values()):
            return repacked, {"layout": "authors"}
        official = {}
        for split in self.domain.counts:
            built, empty = tries[f"official, {split}"], tries[f"official, {split}_no"]
            # Tiles in the two folders may have the same numbers.
            apart = [dataclasses.replace(scene, id=f"no_{scene.id}") for scene in empty.scenes]
            official[split] = Found([*built.scenes, *apart], [*built.faults, *empty.faults])
        return official, {"layout": "official"}

    def _aerial(self, tries: Mapping[str, Found]) -> tuple[dict[str, Found], dict[str, str]]:
        repacked = {split: tries[f"authors, {split}"] for split in ("train", "test")}
        if not any(part.scenes for part in repacked.values()):
            return {split: tries[f"official, {split}"] for split in self.domain.counts}, {"layout": "official"}
        held = self.options["test_folder"]
        if held == "detect":
            held = "test" if len(repacked["test"].scenes) == _OFFICIAL_TEST else "val"
        choices = {"layout": "authors", "split in the folder test": held}
        return {"train": repacked["train"], held: repacked["test"]}, choices
