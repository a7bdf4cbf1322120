"""TFDS builder of LoveDA: urban and rural scenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from crossearth_jax.benchmark import IGNORE

from ..archives import Member
from ..building import Catalogue, SceneBuilder, configs_of
from ..conversion import Recipe
from ..labels import Numbers
from ..layouts import Layout, find

STORED = {0: IGNORE, **{label + 1: label for label in range(7)}}  # 0 is no data


class Builder(SceneBuilder):
    """Scenes of 1024 x 1024, not cut; the official test split has no public labels and is not built."""

    BUILDER_CONFIGS = configs_of("loveda")
    # Archives of https://zenodo.org/records/5706578; MD5 from torchgeo (torchgeo/datasets/loveda.py).
    CHECKSUMS: ClassVar[Mapping[str, str]] = {
        "Train.zip": "de2b196043ed9b4af1690b3f9a7d558f",
        "Val.zip": "84cae2577468ff0b5386758bb386d31d",
    }

    def catalogue(self, files: Sequence[Member]) -> Catalogue:
        """Find the scenes; the authors' archive has the layout of the official ones."""
        found = {split: find(files, layout) for split, layout in self.layouts().items()}
        return Catalogue(
            splits={split: part.scenes for split, part in found.items()},
            recipe=Recipe(Numbers(STORED), self.domain.sizes["train"]),
            choices={"layout": "official"},
            faults=[fault for part in found.values() for fault in part.faults],
        )

    def layouts(self) -> dict[str, Layout]:
        """Return the layout of each split."""
        folders = {split: f"{split.capitalize()}/{self.domain.config.capitalize()}" for split in self.domain.counts}
        return {
            split: Layout(f"{folder}/images_png/{{id}}.png", f"{folder}/masks_png/{{id}}.png")
            for split, folder in folders.items()
        }
