"""TFDS builder of Massachusetts Roads."""

from __future__ import annotations

from collections.abc import Sequence

from ..archives import Member
from ..building import Catalogue, SceneBuilder, configs_of
from ..conversion import Recipe
from ..labels import Mask
from ..layouts import Layout, find

# Labels that the authors rewrote to 0 and 1, where they exist, else the official 0 and 255.
LABEL_FOLDERS = ("labels_new", "labels")


class Builder(SceneBuilder):
    """Images as they are."""

    BUILDER_CONFIGS = configs_of("massachusetts_roads")

    def catalogue(self, files: Sequence[Member]) -> Catalogue:
        """The official folders and the authors'; each split takes the first kind of labels that it has."""
        splits, choices, faults = {}, {}, []
        for split in self.domain.counts:
            tries = {
                folder: find(files, Layout(f"{split}/{{id}}.tiff", f"{split}_{folder}/{{id}}.tif"))
                for folder in LABEL_FOLDERS
            }
            folder = next((name for name, found in tries.items() if found.scenes), LABEL_FOLDERS[-1])
            splits[split] = tries[folder].scenes
            faults += tries[folder].faults
            choices[f"labels of {split}"] = f"{split}_{folder}"
        recipe = Recipe(Mask(threshold=None), self.domain.sizes["train"])
        return Catalogue(splits, recipe, choices, faults)
