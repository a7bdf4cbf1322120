"""Facts of the benchmarks: taxonomies, domains and source -> target settings. No behaviour lives here.

A *domain* is one prepared TFDS configuration ("blue_marble/temperate_green"). A *setting* trains on the train
split of its source and scores the evaluation split of its target over `classes`: the classes that exist in
useful amounts on both sides. Every class of the taxonomy may still be predicted; a prediction outside
`classes` is an error of the class it covers.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

IGNORE = 255  # label of pixels that are neither trained on nor scored


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taxonomy:
    """Classes in the order of their train ids."""

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]  # RGB, one colour per class


@dataclasses.dataclass(frozen=True, kw_only=True)
class Domain:
    """One prepared dataset configuration."""

    dataset: str
    config: str
    description: str
    taxonomy: str | None  # key of TAXONOMIES; None for images without labels
    gsd: float  # ground sampling distance in metres (plate carrée grids: at the equator)
    eval_split: str  # split scored when the domain is a target; "" without labels
    counts: Mapping[str, int]  # images per split
    sizes: Mapping[str, tuple[int, int]]  # height and width of the images per split, in pixels

    @property
    def name(self) -> str:
        """Key in `DOMAINS`, also the TFDS name: "<dataset>/<config>"."""
        return f"{self.dataset}/{self.config}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A number somebody else printed for a setting."""

    miou: float  # percent
    source: str  # where it is printed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One row of a results table: train on `source`, score on `target`."""

    name: str
    source: str  # key of DOMAINS
    target: str  # key of DOMAINS
    gap: tuple[str, ...]  # what differs between the two; () in an in-domain row
    classes: tuple[str, ...]  # scored classes, in the order of the taxonomy
    published: Published | None = None

    @property
    def cross_domain(self) -> bool:
        """False for the in-domain reference rows, which are never averaged with the others."""
        return bool(self.gap)


TAXONOMIES: dict[str, Taxonomy] = {
    taxonomy.name: taxonomy
    for taxonomy in (
        Taxonomy(
            name="blue_marble",
            classes=("water", "forest", "shrub_grass", "cropland", "bare_snow"),
            palette=((38, 102, 178), (20, 97, 45), (166, 196, 92), (236, 184, 64), (214, 206, 198)),
        ),
    )
}

# --- Blue Marble: four climates in two seasons -------------------------------------------------------------

CLIMATES = ("tropical", "arid", "temperate", "cold")
_SEASONS = {"green": "northern growing season", "brown": "northern dormant season"}
_BLUE_MARBLE_GSD = {"green": 7421.0, "brown": 9784.0}  # 1/15 degree and 360/4096 degree

# Images per (train, validation, test); reproduced by building the dataset.
_BLUE_MARBLE_COUNTS = {
    "tropical_green": (282, 98, 96),
    "tropical_brown": (90, 53, 47),
    "arid_green": (727, 177, 174),
    "arid_brown": (257, 99, 100),
    "temperate_green": (187, 39, 42),
    "temperate_brown": (62, 17, 19),
    "cold_green": (829, 170, 202),
    "cold_brown": (292, 95, 109),
}
_BLUE_MARBLE_SIZES = {"train": (64, 64), "validation": (32, 32), "test": (32, 32)}

# Rule: a class counts in a climate if it covers at least 1 % of the labelled pixels of its train split and of
# its test split, in both seasons. Label statistics decide this and nothing else; the smallest share above the
# line is 1.9 % and the largest below it 0.6 %. The data test recomputes the rule.
_BLUE_MARBLE_CLASSES = {
    "tropical": ("water", "forest", "shrub_grass", "cropland"),
    "arid": ("water", "shrub_grass", "cropland", "bare_snow"),
    "temperate": ("water", "forest", "shrub_grass", "cropland"),
    "cold": ("water", "forest", "shrub_grass", "cropland"),
}


def _blue_marble_domain(climate: str, season: str) -> Domain:
    config = f"{climate}_{season}"
    return Domain(
        dataset="blue_marble",
        config=config,
        description=f"Blue Marble tiles of the {climate} climate in the {_SEASONS[season]}",
        taxonomy="blue_marble",
        gsd=_BLUE_MARBLE_GSD[season],
        eval_split="test",
        counts=dict(zip(_BLUE_MARBLE_SIZES, _BLUE_MARBLE_COUNTS[config], strict=True)),
        sizes=_BLUE_MARBLE_SIZES,
    )


_BLUE_MARBLE_UNLABELLED = Domain(
    dataset="blue_marble",
    config="unlabelled",
    description="Blue Marble tiles of every climate and both seasons without labels, from train blocks only",
    taxonomy=None,
    gsd=_BLUE_MARBLE_GSD["green"],
    eval_split="",
    counts={"train": 2239},
    sizes={"train": (64, 64)},
)


def _blue_marble_setting(source: tuple[str, str], target: tuple[str, str]) -> Setting:
    source_name, target_name = "_".join(source), "_".join(target)
    shared = set(_BLUE_MARBLE_CLASSES[source[0]]) & set(_BLUE_MARBLE_CLASSES[target[0]])
    return Setting(
        name=f"{source_name}2{target_name}",
        source=f"blue_marble/{source_name}",
        target=f"blue_marble/{target_name}",
        gap=tuple(g for g, a, b in zip(("climate", "season"), source, target, strict=True) if a != b),
        classes=tuple(name for name in TAXONOMIES["blue_marble"].classes if name in shared),
    )


def _blue_marble_settings() -> list[Setting]:
    """12 cross-climate, 4 cross-season, 4 in-domain and 12 climate-and-season rows; sources are green."""
    pairs = list(itertools.permutations(CLIMATES, 2))
    return [
        *(_blue_marble_setting((a, "green"), (b, "green")) for a, b in pairs),
        *(_blue_marble_setting((a, "green"), (a, "brown")) for a in CLIMATES),
        *(_blue_marble_setting((a, "green"), (a, "green")) for a in CLIMATES),
        *(_blue_marble_setting((a, "green"), (b, "brown")) for a, b in pairs),
    ]


DOMAINS: dict[str, Domain] = {
    domain.name: domain
    for domain in (
        *(_blue_marble_domain(climate, season) for climate in CLIMATES for season in _SEASONS),
        _BLUE_MARBLE_UNLABELLED,
    )
}
SETTINGS: dict[str, Setting] = {setting.name: setting for setting in _blue_marble_settings()}


def settings_from(source: str) -> list[Setting]:
    """The settings that train on `source`, in the order of the benchmark."""
    return [setting for setting in SETTINGS.values() if setting.source == source]


def domains_of(source: str) -> list[str]:
    """Every domain that training on `source` and scoring its settings needs; `source` comes first."""
    return list(dict.fromkeys([source, *(setting.target for setting in settings_from(source))]))
