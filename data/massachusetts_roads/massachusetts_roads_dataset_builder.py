"""TFDS builder of Massachusetts Roads."""

from __future__ import annotations

from collections.abc import Sequence

from ..archives import Member
from ..building import Catalogue, SceneBuilder, configs_of
from ..conversion import Recipe
from ..detection import mask_rule
from ..layouts import Found, Layout, find

# Folders of images and labels of a split by layout. The first layout with files is used: the authors' labels, rewritten
# to 0 and 1, lie beside those of the Kaggle copy. The home page calls the validation folder `valid`.
FOLDERS = {
    "CrossEarth authors": ("{split}", "{split}_labels_new"),
    "Kaggle copy": ("{split}", "{split}_labels"),
    "home page": ("{split}/sat", "{split}/map"),
}
_BUILDINGS = r"mass_buildings"  # Massachusetts Buildings, from the same home page and with the same file names


class Builder(SceneBuilder):
    """Images of 1500 x 1500, not cut."""

    BUILDER_CONFIGS = configs_of("massachusetts_roads")

    def catalogue(self, files: Sequence[Member]) -> Catalogue:
        """Find each split in the first layout that it has files of."""
        layouts = self.layouts()
        found, choices = dict[str, Found](), dict[str, str]()
        for split in self.domain.counts:
            tries = {name: find(files, layouts[f"{name}, {split}"]) for name in FOLDERS}
            name = next((name for name, part in tries.items() if part.scenes), None)
            name = name or next((name for name, part in tries.items() if part.faults), "home page")
            found[split], choices[f"layout of {split}"] = tries[name], name
        labels = {split: mask_rule(part.scenes) for split, part in found.items()}
        return Catalogue(
            splits={split: part.scenes for split, part in found.items()},
            recipe=Recipe(labels["test"], self.domain.sizes["train"]),
            choices={**choices, **{f"masks of {split}": f"0 and {rule.bright}" for split, rule in labels.items()}},
            faults=[fault for part in found.values() for fault in part.faults],
            labels=labels,
        )

    def layouts(self) -> dict[str, Layout]:
        """Return the layouts, named "<key of FOLDERS>, <split>"."""
        layouts = {}
        for name, folders in FOLDERS.items():
            for split in self.domain.counts:
                folder = "valid" if (name, split) == ("home page", "val") else split
                image, label = (part.format(split=folder) for part in folders)
                layouts[f"{name}, {split}"] = Layout(f"{image}/{{id}}.tiff", f"{label}/{{id}}.tif", exclude=_BUILDINGS)
        return layouts
