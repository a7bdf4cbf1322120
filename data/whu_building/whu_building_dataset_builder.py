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

THRESHOLD = 127  # above it is building, where buildings are not stored as 1
# Satellite I (global cities) is used by no setting.
_SATELLITE_I = r"global.cities"
# By the names of the archive, of the folder inside it, of its tiles without buildings, and of the authors' folders.
_SATELLITE_II = r"east.asia|satellite|cropped.image.data|(train|test)_(all|no)/"
_OFFICIAL_TEST = 2416  # images of the official aerial test split


class Builder(SceneBuilder):
    """Tiles as they are."""

    BUILDER_CONFIGS = configs_of("whu_building")
    OPTIONS: ClassVar[tuple[Option, ...]] = (
        Option(
            "test_folder",
            ("detect", "val", "test"),
            "which official aerial split the authors' folder `test` (with `label2`) holds; by its number of images",
        ),
    )

    def catalogue(self, files: Sequence[Member]) -> Catalogue:
        """Satellite tiles are told from aerial ones by their folders' names."""
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
        """By layout and folder."""
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
        """The official folders set tiles without buildings apart; both kinds are of the split."""
        repacked = {split: tries[f"authors, {split}_all"] for split in self.domain.counts}
        if any(part.scenes for part in repacked.values()):
            return repacked, {"layout": "authors"}
        official = {}
        for split in self.domain.counts:
            built, empty = tries[f"official, {split}"], tries[f"official, {split}_no"]
            # Both folders may number their tiles from the start.
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
