"""Facts of the benchmarks: taxonomies, domains and source -> target settings. Nothing here does more than look up.

A *domain* is one prepared TFDS configuration ("blue_marble/temperate_green"). A *setting* trains on the train
split of its source and scores the evaluation split of its target over `classes`: the classes that exist in
useful amounts on both sides. Every class of the taxonomy may still be predicted; a prediction outside
`classes` is an error of the class it covers. A *training* is one model; it serves every setting of its source.
"""

from __future__ import annotations

from collections.abc import Sequence

from crossearth_jax.benchmark import blue_marble, crossearth
from crossearth_jax.benchmark.blue_marble import CLIMATES
from crossearth_jax.benchmark.crossearth import OPEN_ROWS, OTHER_WEIGHTS, WEIGHTS_HOME
from crossearth_jax.benchmark.facts import (
    IGNORE,
    Domain,
    OpenRow,
    Published,
    Resize,
    Setting,
    Taxonomy,
    Training,
)
from crossearth_jax.config import UserError

__all__ = [
    "CLIMATES",
    "DOMAINS",
    "IGNORE",
    "OPEN_ROWS",
    "OTHER_WEIGHTS",
    "SETTINGS",
    "TAXONOMIES",
    "TRAININGS",
    "WEIGHTS_HOME",
    "Domain",
    "OpenRow",
    "Published",
    "Resize",
    "Setting",
    "Taxonomy",
    "Training",
    "domains_of",
    "settings_from",
    "settings_of",
    "training_of",
    "used_splits",
]

TAXONOMIES: dict[str, Taxonomy] = {
    taxonomy.name: taxonomy for taxonomy in (*blue_marble.TAXONOMIES, *crossearth.TAXONOMIES)
}
DOMAINS: dict[str, Domain] = {domain.name: domain for domain in (*blue_marble.DOMAINS, *crossearth.DOMAINS)}
SETTINGS: dict[str, Setting] = {setting.name: setting for setting in (*blue_marble.settings(), *crossearth.settings())}
TRAININGS: dict[str, Training] = {training.name: training for training in crossearth.TRAININGS}


def settings_from(source: str) -> list[Setting]:
    """The settings that train on `source`, in the order of the benchmark."""
    return [setting for setting in SETTINGS.values() if setting.source == source]


def settings_of(source: str, names: Sequence[str] = ()) -> list[Setting]:
    """The settings called `names`, which must train on `source`; without names, every one of the source.

    Raises:
      UserError: a name is unknown or trains on another source.
    """
    for name in names:
        if name not in SETTINGS:
            raise UserError(f"unknown setting '{name}'; settings of {source}: {_names(settings_from(source))}")
        if SETTINGS[name].source != source:
            raise UserError(
                f"setting {name} trains on {SETTINGS[name].source}, this run on {source}; score the settings of "
                "several trainings with --mode=evaluate --checkpoints=DIR"
            )
    return [SETTINGS[name] for name in names] or settings_from(source)


def _names(settings: Sequence[Setting]) -> str:
    return ", ".join(setting.name for setting in settings) or "none"


def domains_of(source: str) -> list[str]:
    """Every domain that training on `source` and scoring its settings needs; `source` comes first."""
    return list(dict.fromkeys([source, *(setting.target for setting in settings_from(source))]))


def training_of(name: str) -> Training | None:
    """The training called `name`, or the one that serves the setting `name`; None if there is none."""
    source = SETTINGS[name].source if name in SETTINGS else None
    return next(
        (training for training in TRAININGS.values() if name == training.name or source == training.source), None
    )


def used_splits(domain: str) -> tuple[str, ...]:
    """The splits of `domain` that some setting reads; others may be absent from what is prepared."""
    source = any(setting.source == domain for setting in SETTINGS.values())
    target = any(setting.target == domain for setting in SETTINGS.values())
    facts = DOMAINS[domain]
    return tuple(
        split for split in facts.counts if (source and split == "train") or (target and split == facts.eval_split)
    )
