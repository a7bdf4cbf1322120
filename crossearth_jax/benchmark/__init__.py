"""Facts of the benchmarks: taxonomies, domains and source -> target settings, available before anything is prepared.

Other packages look up domains and settings in `benchmark.registry`, which also finds users' own domains.

A *domain* is one TFDS configuration ("blue_marble/temperate_green"). A *setting* trains on the train split of its
source and scores the evaluation split of its target over `classes`: the classes that are frequent enough in both. The
model may still predict every class of the taxonomy; a prediction outside `classes` counts as an error of the true
class. A *training* is one model, which is evaluated in every setting of its source.
"""

from __future__ import annotations

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
    "training_of",
    "used_splits",
]

TAXONOMIES: dict[str, Taxonomy] = {
    taxonomy.name: taxonomy for taxonomy in (blue_marble.TAXONOMY, *crossearth.TAXONOMIES)
}
DOMAINS: dict[str, Domain] = {domain.name: domain for domain in (*blue_marble.DOMAINS, *crossearth.DOMAINS)}
SETTINGS: dict[str, Setting] = {setting.name: setting for setting in (*blue_marble.settings(), *crossearth.settings())}
TRAININGS: dict[str, Training] = {training.name: training for training in crossearth.TRAININGS}


def training_of(name: str) -> Training | None:
    """Return the training `name`, or the training that is evaluated in the setting `name`; None if there is none."""
    source = SETTINGS[name].source if name in SETTINGS else None
    return next(
        (training for training in TRAININGS.values() if name == training.name or source == training.source), None
    )


def used_splits(domain: str) -> tuple[str, ...]:
    """Return the splits of `domain` that some setting reads; the others may be missing from the prepared data."""
    source = any(setting.source == domain for setting in SETTINGS.values())
    target = any(setting.target == domain for setting in SETTINGS.values())
    facts = DOMAINS[domain]
    return tuple(
        split for split in facts.counts if (source and split == "train") or (target and split == facts.eval_split)
    )
