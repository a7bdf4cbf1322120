"""TFDS builder of DeepGlobe Road Extraction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ..archives import Member
from ..building import Catalogue, SceneBuilder, configs_of
from ..conversion import Recipe
from ..detection import mask_rule
from ..layouts import Layout, find

THRESHOLD = 127  # masks are not pure black and white: 128 and above is road


class Builder(SceneBuilder):
    """The official train split; the other splits have no public labels and are not built."""

    BUILDER_CONFIGS = configs_of("deepglobe_roads")
    IMAGE_FORMAT: ClassVar[str] = "jpeg"

    def catalogue(self, files: Sequence[Member]) -> Catalogue:
        """Find the images; masks may have the official values or be stored as 0 and 1."""
        found = find(files, self.layouts()["train"])
        rule = mask_rule(found.scenes, THRESHOLD)
        recipe = Recipe(rule, self.domain.sizes["train"])
        return Catalogue({"train": found.scenes}, recipe, {"masks": f"0 and {rule.bright}"}, found.faults)

    def layouts(self) -> dict[str, Layout]:
        """Return the official naming below a folder `train`; images of the other splits have the same form of names."""
        return {"train": Layout("train/**/{id}_sat.jpg", "train/**/{id}_mask.png")}
