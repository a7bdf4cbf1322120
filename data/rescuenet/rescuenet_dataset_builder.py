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
# A proposal: how the authors unified the labels is not published. Only background -> clutter has some support, a
# figure of theirs that shows the ground in clutter's colour.
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
# Version 1.0 has twelve classes: 1 is debris and 11 sand, and what is between them has other numbers than above.
SAND = 11
_VERSION_1_FOLDERS = re.compile(r"rescuenet-test[/.]", re.IGNORECASE)  # its downloads are split by folder
_GET_VERSION_2 = "whose classes are numbered differently; download version 2, where they are 0 to 10"


class Builder(SceneBuilder):
    """Photographs as they are, most of 3000 x 4000 pixels."""

    BUILDER_CONFIGS = configs_of("rescuenet")
    IMAGE_FORMAT: ClassVar[str] = "jpeg"
    OPTIONS: ClassVar[tuple[Option, ...]] = (
        Option("water", ("clutter", "ignored"), "what water and pools become; not published"),
        Option("labels", ("detect", "official", "repacked"), "official numbers 0-10, or the authors' 0-5"),
    )

    def catalogue(self, files: Sequence[Member]) -> Catalogue:
        """The official archive and the authors' have the same names; a number above 5 tells the official one."""
        found = find(files, self.layouts()["test"])
        values = np.flatnonzero(histogram(found.scenes))
        labels = self.options["labels"]
        if labels == "detect":
            labels = "official" if values.size == 0 or values[-1] > max(REPACKED) else "repacked"
            folder = any(_VERSION_1_FOLDERS.search(scene.label.path) for scene in found.scenes)
            if labels == "official" and (folder or SAND in values):
                why = f"some reach {SAND}" if SAND in values else "as their folder is called"
                raise UserError(
                    f"{found.scenes[0].label.path} and others are labels of version 1.0 ({why}), {_GET_VERSION_2}; if"
                    f" they are not: --option {self.name}.labels=official"
                )
        water = _CLUTTER if self.options["water"] == "clutter" else IGNORE
        table = {**OFFICIAL, WATER: water, POOL: water} if labels == "official" else REPACKED
        repacked = f"if these are official labels: --option {self.name}.labels=official"
        remedy = f"{SAND} is sand in version 1.0, {_GET_VERSION_2}" if labels == "official" else repacked
        recipe = Recipe(Numbers(table, remedy), self.domain.sizes["test"])
        notes = ["water and pools are as the authors stored them"] if labels == "repacked" else []
        return Catalogue({"test": found.scenes}, recipe, {"labels": labels}, found.faults, notes)

    def layouts(self) -> dict[str, Layout]:
        """FloodNet, of the same laboratory, has the same names and other classes."""
        return {"test": Layout("test-org-img/{id}.jpg", "test-label-img/{id}_lab.png", exclude="floodnet")}
