"""TFDS builder of RescueNet on the five classes shared with Potsdam; the benchmark uses its test split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from crossearth_jax.benchmark import IGNORE, TAXONOMIES

from ..archives import Member
from ..building import Catalogue, Option, SceneBuilder, configs_of
from ..conversion import Recipe
from ..detection import values_in
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
        found = find(files, Layout("test-org-img/{id}.jpg", "test-label-img/{id}_lab.png"))
        labels = self.options["labels"]
        if labels == "detect":
            labels = "official" if max(values_in(found.scenes), default=6) > max(REPACKED) else "repacked"
        water = _CLUTTER if self.options["water"] == "clutter" else IGNORE
        table = {**OFFICIAL, WATER: water, POOL: water} if labels == "official" else REPACKED
        remedy = "" if labels == "official" else f"if these are official labels: --option {self.name}.labels=official"
        recipe = Recipe(Numbers(table, remedy), self.domain.sizes["test"])
        notes = ["water and pools are as the authors stored them"] if labels == "repacked" else []
        return Catalogue({"test": found.scenes}, recipe, {"labels": labels}, found.faults, notes)
