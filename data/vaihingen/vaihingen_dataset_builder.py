"""TFDS builder of ISPRS Vaihingen: infrared, red, green; the six classes of Potsdam."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from .. import isprs
from ..archives import Member
from ..building import Catalogue, Option, SceneBuilder, configs_of
from ..conversion import Recipe
from ..labels import Numbers
from ..layouts import Layout

# Area 9 has an image and a label and is in neither split: the converter behind the benchmark drops its label.
IDS = {
    "train": tuple(f"area{n}" for n in (1, 3, 5, 7, 11, 13, 15, 17, 21, 23, 26, 28, 30, 32, 34, 37)),
    "val": tuple(f"area{n}" for n in (2, 4, 6, 8, 10, 12, 14, 16, 20, 22, 24, 27, 29, 31, 33, 35, 38)),
}

_SCENE = r"area\d+"


class Builder(SceneBuilder):
    """Tiles of 512 pixels, split by scene."""

    BUILDER_CONFIGS = configs_of("vaihingen")
    OPTIONS: ClassVar[tuple[Option, ...]] = (isprs.UNKNOWN_COLOURS,)
    # As torchgeo states it (torchgeo/datasets/vaihingen.py); it uses other labels than the benchmark.
    CHECKSUMS: ClassVar[Mapping[str, str]] = {
        "ISPRS_semantic_labeling_Vaihingen.zip": "462b8dca7b6fa9eaf729840f0cdfc7f3"
    }

    def catalogue(self, files: Sequence[Member]) -> Catalogue:
        """Official scenes if there are any, else tiles of the authors' converter."""
        splits, faults = isprs.find_scenes(files, self.layouts()["official scenes"], IDS)
        largest = self.domain.sizes["train"]
        if not any(splits.values()):
            tiles, tile_faults = isprs.find_tiles(files, "", _SCENE, IDS)
            if any(tiles.values()):
                return Catalogue(tiles, Recipe(Numbers(isprs.STORED), largest), {"layout": "tiles"}, tile_faults)
        labels = isprs.colour_rule(self.name, isprs.COLOURS, self.options)
        recipe = Recipe(labels, largest, isprs.CUT)
        return Catalogue(splits, recipe, {"layout": "official scenes"}, faults, isprs.absent(splits, IDS))

    def layouts(self) -> dict[str, Layout]:
        """The images' folder is named: labels with boundaries are called exactly as the images are."""
        official = Layout("top/top_mosaic_09cm_{id}.tif", "top_mosaic_09cm_{id}_noBoundary.tif", id=_SCENE)
        tiles = {f"tiles of {split}": isprs.tile_layout("", _SCENE, split) for split in IDS}
        return {"official scenes": official, **tiles}
