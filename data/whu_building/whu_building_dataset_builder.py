"""TFDS builder of WHU Building: the aerial set and the Satellite II set (East Asia)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from ..archives import Member
from ..building import Catalogue, Option, SceneBuilder, configs_of
from ..conversion import Recipe
from ..labels import Mask
from ..layouts import Found, Layout, find

THRESHOLD = 127  # above it is building; the authors store 0 and 1
# Satellite I (global cities) is used by no setting.
_SATELLITE_I = re.compile(r"global.cities", re.IGNORECASE)
_SATELLITE_II = re.compile(r"east.asia|satellite|(train|test)_all/", re.IGNORECASE)
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
        files = [file for file in files if not _SATELLITE_I.search(file.path)]
        satellite = self.domain.config == "satellite_ii"
        files = [file for file in files if bool(_SATELLITE_II.search(file.path)) == satellite]
        found, choices = self._satellite(files) if satellite else self._aerial(files)
        return Catalogue(
            splits={split: part.scenes for split, part in found.items()},
            recipe=Recipe(Mask(THRESHOLD), self.domain.sizes["train"]),
            choices=choices,
            faults=[fault for part in found.values() for fault in part.faults],
        )

    def _satellite(self, files: Sequence[Member]) -> tuple[dict[str, Found], dict[str, str]]:
        repacked = {split: _find(files, f"{split}_all", "label") for split in self.domain.counts}
        if any(part.scenes for part in repacked.values()):
            return repacked, {"layout": "authors"}
        return {split: _find(files, split, "label") for split in self.domain.counts}, {"layout": "official"}

    def _aerial(self, files: Sequence[Member]) -> tuple[dict[str, Found], dict[str, str]]:
        repacked = {split: _find(files, split, "label2") for split in ("train", "test")}
        if not any(part.scenes for part in repacked.values()):
            return {split: _find(files, split, "label") for split in self.domain.counts}, {"layout": "official"}
        held = self.options["test_folder"]
        if held == "detect":
            held = "test" if len(repacked["test"].scenes) == _OFFICIAL_TEST else "val"
        choices = {"layout": "authors", "split in the folder test": held}
        return {"train": repacked["train"], held: repacked["test"]}, choices


def _find(files: Sequence[Member], folder: str, labels: str) -> Found:
    return find(files, Layout(f"{folder}/image/{{id}}.tif", f"{folder}/{labels}/{{id}}.tif"))
