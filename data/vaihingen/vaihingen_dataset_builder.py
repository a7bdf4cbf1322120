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

# Area 9 has an image and a label but is in neither split, because the benchmark's converter drops its label.
IDS = {
    "train": tuple(f"area{n}" for n in (1, 3, 5, 7, 11, 13, 15, 17, 21, 23, 26, 28, 30, 32, 34, 37)),
    "val": tuple(f"area{n}" for n in (2, 4, 6, 8, 10, 12, 14, 16, 20, 22, 24, 27, 29, 31, 33, 35, 38)),
}

_SCENE = r"area\d+"


class Builder(SceneBuilder):
    """Tiles of 512 pixels, split by scene."""

    BUILDER_CONFIGS = configs_of("vaihingen")
    OPTIONS: ClassVar[tuple[Option, ...]] = (isprs.UNKNOWN_COLOURS,)
    # From torchgeo (torchgeo/datasets/vaihingen.py), which uses other labels than the benchmark.
    CHECKSUMS: ClassVar[Mapping[str, str]] = {
        "ISPRS_semantic_labeling_Vaihingen.zip": "462b8dca7b6fa9eaf729840f0cdfc7f3"
    }

    def catalogue(self, files: Sequence[Member]) -> Catalogue:
        """Find official scenes, or else tiles of the authors' converter."""
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
        """Return the layouts of official scenes and of tiles.

        The template includes the image folder `top`, because labels with boundaries have the same file names as images.
        """
        official = Layout("top/top_mosaic_09cm_{id}.tif", "top_mosaic_09cm_{id}_noBoundary.tif", id=_SCENE)
        tiles = {f"tiles of {split}": isprs.tile_layout("", _SCENE, split) for split in IDS}
        return {"official scenes": official, **tiles}
