"""TFDS builder of ISPRS Potsdam: two band combinations, on the six classes and on the five shared with RescueNet."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from crossearth_jax.benchmark import IGNORE

from .. import isprs
from ..archives import Member
from ..building import Catalogue, Option, SceneBuilder, configs_of
from ..conversion import Recipe
from ..labels import Numbers
from ..layouts import Layout

IDS = {
    "train": (
        *("2_10", "2_11", "2_12", "3_10", "3_11", "3_12", "4_10", "4_11", "4_12", "5_10", "5_11", "5_12"),
        *("6_10", "6_11", "6_12", "6_7", "6_8", "6_9", "7_10", "7_11", "7_12", "7_7", "7_8", "7_9"),
    ),
    "val": (
        *("2_13", "2_14", "3_13", "3_14", "4_13", "4_14", "4_15", "5_13", "5_14", "5_15", "6_13", "6_14", "6_15"),
        "7_13",
    ),
}
# Six classes -> five: low vegetation and tree become vegetation. This is not published, but no other merge of two
# classes gives the five names.
FIVE = {IGNORE: IGNORE, 0: 0, 1: 1, 2: 2, 3: 2, 4: 3, 5: 4}
STORED_FIVE = {0: IGNORE, 1: 0, 2: 1, 3: 2, 4: 3, 5: 4}  # in the authors' archive of five classes
_SCENE = r"\d+_\d+"  # row and column
_REPACKED_FIVE = re.compile(r"potsdam[_-]?res", re.IGNORECASE)  # path of the authors' archive with five classes


class Builder(SceneBuilder):
    """Tiles of 512 pixels, split by scene."""

    BUILDER_CONFIGS = configs_of("potsdam")
    OPTIONS: ClassVar[tuple[Option, ...]] = (isprs.UNKNOWN_COLOURS,)

    def catalogue(self, files: Sequence[Member]) -> Catalogue:
        """Find official scenes, or else tiles of the authors' converter."""
        official = self._scenes(files)
        tiles = () if any(official.splits.values()) else self._tiles(files)
        return next((found for found in tiles if any(found.splits.values())), official)

    def layouts(self) -> dict[str, Layout]:
        """Return the layouts of official scenes and of tiles.

        True orthophotos and labels with and without boundaries differ only in the end of their names.
        """
        image, label = f"top_potsdam_{{id}}_{self._bands}.tif", "top_potsdam_{id}_label_noBoundary.tif"
        return {
            "official scenes": Layout(image, label, id=_SCENE),
            **{f"tiles of {split}": isprs.tile_layout(f"{self._bands}/", _SCENE, split) for split in IDS},
        }

    @property
    def _bands(self) -> str:
        return self.domain.config.removesuffix("_5class").upper()

    @property
    def _five(self) -> bool:
        return self.domain.config.endswith("_5class")

    def _scenes(self, files: Sequence[Member]) -> Catalogue:
        splits, faults = isprs.find_scenes(files, self.layouts()["official scenes"], IDS)
        table = {colour: FIVE[label] for colour, label in isprs.COLOURS.items()} if self._five else isprs.COLOURS
        labels = isprs.colour_rule(self.name, table, self.options)
        recipe = Recipe(labels, self.domain.sizes["train"], isprs.CUT)
        return Catalogue(splits, recipe, {"layout": "official scenes"}, faults, isprs.absent(splits, IDS))

    def _tiles(self, files: Sequence[Member]) -> Iterator[Catalogue]:
        repacked = [file for file in files if _REPACKED_FIVE.search(file.path)]
        if self._five:
            yield self._tiles_of(repacked, STORED_FIVE, "tiles with five classes")
        table = {number: FIVE[label] for number, label in isprs.STORED.items()} if self._five else isprs.STORED
        yield self._tiles_of(
            [file for file in files if not _REPACKED_FIVE.search(file.path)], table, "tiles with six classes"
        )

    def _tiles_of(self, files: Sequence[Member], stored: Mapping[int, int], layout: str) -> Catalogue:
        splits, faults = isprs.find_tiles(files, f"{self._bands}/", _SCENE, IDS)
        return Catalogue(splits, Recipe(Numbers(stored), self.domain.sizes["train"]), {"layout": layout}, faults)
