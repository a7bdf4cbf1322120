"""Evaluation: a source model on every target of its settings, one confusion matrix per domain.

`python -m crossearth_jax.main --config=… --workdir=… --mode=evaluate`
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from crossearth_jax.benchmark import Domain, Setting
from crossearth_jax.benchmark.registry import find_domain, settings_from, settings_of, source_domains
from crossearth_jax.config import Config, UserError
from crossearth_jax.inference import metrics
from crossearth_jax.inference.domains import DomainResult, score_domain
from crossearth_jax.inference.results import row, score
from crossearth_jax.inference.segmentor import Segmentor
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.runtime import parallel
from crossearth_jax.runtime.atomic import write_json
from crossearth_jax.weights.native import Description

PROTOCOL = "last checkpoint; nothing was chosen on a target"
HOLDOUTS = ("validation", "val")  # names of splits that a source's checkpoints may be chosen on


def evaluate(config: Config, workdir: Path, segmentor: Segmentor) -> dict[str, DomainResult]:
    """Scores the config's settings and writes `results.json`.

    All processes of a run call it together; the first one writes.

    Args:
      config: names the settings, where data are prepared and how windows are batched.
      workdir: where the results go.
      segmentor: the run's model.

    Returns:
      What was found for each target, the same on every process.

    Raises:
      UserError: the model was trained on another domain than the configuration's source, or a target is not prepared.
    """
    source, data_dir, described = config.data.source, config.data.data_dir, segmentor.description
    check_source(segmentor, source, workdir)
    settings = settings_of(source, config.evaluate.settings, data_dir)
    targets = {setting.target: find_domain(setting.target, data_dir) for setting in settings}
    windows = segmentor.sliding_windows(batch_size=config.evaluate.batch_size)
    found = {
        name: score_domain(windows, target, target.eval_split, data_dir, examples=config.evaluate.examples)
        for name, target in targets.items()
    }
    if jax.process_index() == 0:
        rows = {}
        for setting in settings:
            protocol = protocol_text(config, setting, described.style_targets)
            names, confusion = targets[setting.target].classes, found[setting.target].confusion
            rows[setting.name] = row(setting, names, confusion, described.step) | {"protocol": protocol}
        for earlier in (workdir / "evaluation").glob("*.npz"):  # additions to scores that are replaced now
            earlier.unlink()
        write_json(workdir / "results.json", rows)
        for setting in settings:
            logging.info("%s: mIoU %.2f", setting.name, rows[setting.name]["miou"])
    return found


def check_source(segmentor: Segmentor, source: str, workdir: Path) -> None:
    """Raises a UserError if the run's model was not trained on the configuration's source."""
    trained_on = segmentor.description.trained_on
    if trained_on != source:
        raise UserError(
            f"the model in {workdir} was trained on {trained_on or 'an unknown domain'}, the configuration's "
            f"source is {source}; use another --workdir, or the configuration that the run was started with"
        )


def is_evaluated(config: Config, workdir: Path, segmentor: Segmentor) -> bool:
    """Whether `results.json` holds the scores of this checkpoint on all the config's settings; all processes ask."""
    try:
        rows = json.loads((workdir / "results.json").read_text(encoding="utf-8"))
        settings = settings_of(config.data.source, config.evaluate.settings, config.data.data_dir)
        steps = [rows[setting.name]["checkpoint_step"] for setting in settings]
        complete = all(step == segmentor.description.step for step in steps)
    except (OSError, ValueError, KeyError, TypeError):
        complete = False
    return parallel.all_agree(complete)


def evaluate_model(
    segmentor: Segmentor, setting: Setting, data_dir: str, batch_size: int = 16
) -> tuple[dict[str, Any], DomainResult]:
    """Scores a loaded model on one setting, on all local devices.

    Args:
      segmentor: of any origin, with the classes of the target.
      setting: its target must be prepared.
      data_dir: folder of the prepared datasets.
      batch_size: windows scored together.

    Returns:
      mIoU and IoU by class as in `results.json`, and what they were computed from.

    Raises:
      UserError: the target is not prepared, or the model has another number of classes.
    """
    target = find_domain(setting.target, data_dir)
    names = target.classes
    if segmentor.classes != len(names):
        raise UserError(
            f"the model has {segmentor.classes} classes, {setting.target} has {len(names)}: {', '.join(names)}"
        )
    windows = segmentor.sliding_windows(batch_size=batch_size)
    result = score_domain(windows, target, target.eval_split, data_dir, examples=4)
    return score(setting, names, result.confusion), result


def validate(config: Config, params: Mapping[str, jax.Array]) -> float:
    """Scores parameters in training on the validation split of the source; all processes call it together.

    The confusion matrices of several sources are added up.

    Returns:
      mIoU in percent, over the classes of the source's in-domain settings if it has any, else over all.

    Raises:
      UserError: the source has no such split.
    """
    source, data_dir = config.data.source, config.data.data_dir
    domains = source_domains(source, data_dir)
    model = SegmentationModel(dataclasses.replace(config.model, mim=None))
    described = Description(model=model.config, window=config.evaluate.window, stride=config.evaluate.stride)
    windows = Segmentor(model, dict(params), described).sliding_windows(batch_size=config.evaluate.batch_size)
    matrices = [score_domain(windows, domain, holdout(domain), data_dir).confusion for domain in domains]
    scored = scored_classes(source, data_dir)
    iou = metrics.iou(np.sum(matrices, axis=0))[[name in scored for name in domains[0].classes]]
    return float(np.nanmean(iou) * 100) if np.isfinite(iou).any() else 0.0


def scored_classes(source: str, data_dir: str) -> tuple[str, ...]:
    """The classes that count in the source's own domains: those of its in-domain settings, or all if it has none."""
    own = [setting.classes for setting in settings_from(source, data_dir) if not setting.cross_domain]
    names = source_domains(source, data_dir)[0].classes
    return tuple(name for name in names if not own or any(name in classes for classes in own))


def holdout(domain: Domain) -> str:
    """The split of a source domain that its checkpoints may be chosen on.

    Raises:
      UserError: it has none.
    """
    splits = domain.counts
    found = [split for split in HOLDOUTS if split in splits]
    if not found:
        raise UserError(
            f"{domain.name} has the splits {', '.join(splits)}, but none to choose a checkpoint on; "
            "score the last one (evaluate.select=last)"
        )
    return found[0]


def protocol_text(config: Config, setting: Setting, style_targets: Sequence[str]) -> str:
    """How the scored checkpoint was chosen, in words for the report.

    Args:
      config: of the run.
      setting: the row.
      style_targets: targets that the run's styles were estimated from (by request only).
    """
    text = PROTOCOL
    if config.evaluate.select != "last":
        domains = source_domains(config.data.source, config.data.data_dir)
        splits = {domain.name: holdout(domain) for domain in domains}
        chosen = " and ".join(f"the {split} split of the source {name}" for name, split in splits.items())
        seen = any(setting.target == domain.name and domain.eval_split == splits[domain.name] for domain in domains)
        text = f"best checkpoint on {chosen}" + (
            ", which this row scores too" if seen else "; nothing was chosen on a target"
        )
    if style_targets:
        text += f"; not blind to {', '.join(style_targets)}, whose styles are in the style statistics"
    return text
