"""TFDS builder of RescueNet on the five classes shared with Potsdam; the benchmark uses its test split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from crossearth_jax.benchmark import IGNORE, TAXONOMIES
from crossearth_jax.config import UserError

from ..archives import Member
from ..building import Catalogue, Option, SceneBuilder, configs_of
from ..conversion import Recipe
from ..detection import histogram
from ..labels import Numbers
from ..layouts import Layout, find

_IMPERVIOUS, _BUILDING, _VEGETATION, _CAR, _CLUTTER = range(len(TAXONOMIES["isprs_5class"].classes))
WATER, POOL = 1, 10
# A proposal: the authors' mapping to five classes is not published. Only background -> clutter is supported, by one of
# their figures, which shows the ground in the colour of clutter.
OFFICIAL = {
    0: _CLUTTER,
    WATER: _CLUTTER,
    **dict.fromkeys((2, 3, 4, 5), _BUILDING),  # from no damage to total destruction
    6: _CAR,
    **dict.fromkeys((7, 8), _IMPERVIOUS),  # road, clear or blocked
    9: _VEGETATION,
    POOL: _CLUTTER,
}
REPACKED = {0: IGNORE, **{label + 1: label for label in range(5)}}  # the authors' archive
# Version 1.0 has twelve classes: 1 is debris, 11 is sand, and most numbers between have another meaning than above.
SAND = 11
_VERSION_1_FOLDERS = re.compile(r"rescuenet-test[/.]", re.IGNORECASE)  # folder or archive of the test split of 1.0
_GET_VERSION_2 = "whose classes are numbered differently; download version 2, where they are 0 to 10"


class Builder(SceneBuilder):
    """Photographs, not cut, most of 3000 x 4000 pixels."""

    BUILDER_CONFIGS = configs_of("rescuenet")
    IMAGE_FORMAT: ClassVar[str] = "jpeg"
    OPTIONS: ClassVar[tuple[Option, ...]] = (
        Option("water", ("clutter", "ignored"), "class of water and pools in official labels; not published"),
        Option("labels", ("detect", "official", "repacked"), "official numbers 0-10, or the authors' 0-5"),
    )

    def catalogue(self, files: Sequence[Member]) -> Catalogue:
        """Find the photographs and detect the kind of labels.

        The official archive and the authors' have the same names; a number above 5 shows the official one.

        Raises:
          UserError: the labels are of version 1.0.
        """
        found = find(files, self.layouts()["test"])
        values = np.flatnonzero(histogram(found.scenes))
        labels = self.options["labels"]
        if labels == "detect":
            labels = "official" if values.size == 0 or values[-1] > max(REPACKED) else "repacked"
            folder = any(_VERSION_1_FOLDERS.search(scene.label.path) for scene in found.scenes)
            if labels == "official" and (folder or SAND in values):
                why = f"some are {SAND}" if SAND in values else "from the name of the folder"
                raise UserError(
                    f"{found.scenes[0].label.path} and others are labels of version 1.0 ({why}), {_GET_VERSION_2}; if"
                    f" they are of version 2: --option {self.name}.labels=official"
                )
        water = _CLUTTER if self.options["water"] == "clutter" else IGNORE
        table = {**OFFICIAL, WATER: water, POOL: water} if labels == "official" else REPACKED
        repacked = f"if these are official labels: --option {self.name}.labels=official"
        remedy = f"{SAND} is sand in version 1.0, {_GET_VERSION_2}" if labels == "official" else repacked
        recipe = Recipe(Numbers(table, remedy), self.domain.sizes["test"])
        notes = ["water and pools have the class that the authors gave them"] if labels == "repacked" else []
        return Catalogue({"test": found.scenes}, recipe, {"labels": labels}, found.faults, notes)

    def layouts(self) -> dict[str, Layout]:
        """Return the layout of the test split; FloodNet, which has the same names but other classes, is excluded."""
        return {"test": Layout("test-org-img/{id}.jpg", "test-label-img/{id}_lab.png", exclude="floodnet")}
