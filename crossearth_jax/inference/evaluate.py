"""Evaluation: score a trained model on the target domain of every setting, with one confusion matrix per domain.

`python -m crossearth_jax.main --config=… --workdir=… --mode=evaluate`
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from crossearth_jax.benchmark import Domain, Setting
from crossearth_jax.benchmark.registry import find_domain, settings_from, settings_of, source_domains
from crossearth_jax.config import Config, UserError
from crossearth_jax.inference import metrics
from crossearth_jax.inference.calibration import HOLDOUTS, scored_temperatures
from crossearth_jax.inference.domains import DomainResult, score_domain
from crossearth_jax.inference.results import row, score
from crossearth_jax.inference.segmentor import Segmentor
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.runtime import parallel
from crossearth_jax.runtime.atomic import write_json
from crossearth_jax.runtime.buckets import AnyPath
from crossearth_jax.weights.native import Description

PROTOCOL = "last checkpoint; no target domain was used for model selection"


def evaluate(config: Config, workdir: AnyPath, segmentor: Segmentor) -> dict[str, DomainResult]:
    """Score all settings of the configuration and write `results.json`.

    All processes of a run call it together; the first process writes the file.

    Args:
      config: gives the settings, the folder of the prepared data and the batch size of the windows.
      workdir: folder for the results.
      segmentor: the run's model; if it has a temperature, the calibration error is computed without and with it.

    Returns:
      Target domain -> its result. The confusion matrix is that of all processes; the examples are images that this
      process scored.

    Raises:
      UserError: the model was not trained on the source of the configuration, or a target is not prepared.
    """
    source, data_dir, described = config.data.source, config.data.data_dir, segmentor.description
    check_source(segmentor, source, workdir)
    settings = settings_of(source, config.evaluate.settings, data_dir)
    targets = {setting.target: find_domain(setting.target, data_dir) for setting in settings}
    windows = segmentor.sliding_windows(batch_size=config.evaluate.batch_size, flips=config.evaluate.flips)
    temperature = described.temperature
    temperatures = scored_temperatures(temperature)
    examples = config.evaluate.examples
    found = {
        name: score_domain(windows, target, target.eval_split, data_dir, examples, temperatures=temperatures)
        for name, target in targets.items()
    }
    if jax.process_index() == 0:
        rows = {}
        for setting in settings:
            protocol = protocol_text(config, setting, described.style_targets)
            result = found[setting.target]
            counts = result.confusion, described.step, result.reliability, temperature
            fields = {"flips": config.evaluate.flips, "protocol": protocol}
            rows[setting.name] = row(setting, targets[setting.target].classes, *counts) | fields
        for earlier in (workdir / "evaluation").glob("*.npz"):  # they belong to the scores that are replaced here
            earlier.unlink()
        write_json(workdir / "results.json", rows)
        for setting in settings:
            logging.info("%s: mIoU %.2f", setting.name, rows[setting.name]["miou"])
    return found


def check_source(segmentor: Segmentor, source: str, workdir: AnyPath) -> None:
    """Raise a UserError if the run's model was not trained on the configuration's source."""
    trained_on = segmentor.description.trained_on
    if trained_on != source:
        raise UserError(
            f"the model in {workdir} was trained on {trained_on or 'an unknown domain'}, the configuration's "
            f"source is {source}; use another --workdir, or the configuration with which the run was started"
        )


def is_evaluated(config: Config, workdir: AnyPath, segmentor: Segmentor) -> bool:
    """Return whether `results.json` has an entry of this checkpoint and `evaluate.flips` for every setting.

    All processes of a run call it together. The answer is yes only if every process finds these entries.
    """
    try:
        rows = json.loads((workdir / "results.json").read_text(encoding="utf-8"))
        settings = settings_of(config.data.source, config.evaluate.settings, config.data.data_dir)
        found = [
            (rows[setting.name]["checkpoint_step"], rows[setting.name].get("flips", False)) for setting in settings
        ]
        complete = all(entry == (segmentor.description.step, config.evaluate.flips) for entry in found)
    except (OSError, ValueError, KeyError, TypeError):
        complete = False
    return parallel.all_agree(complete)


def evaluate_model(
    segmentor: Segmentor, setting: Setting, data_dir: str, batch_size: int = 16
) -> tuple[dict[str, Any], DomainResult]:
    """Score a loaded model on one setting, on all local devices.

    Args:
      segmentor: a model of any origin that has the classes of the target.
      setting: a setting whose target is prepared.
      data_dir: folder of the prepared datasets.
      batch_size: windows scored together.

    Returns:
      mIoU and class IoU as in `results.json`, and the result they are computed from, with up to four examples.

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
    """Score the current parameters during training on the validation split of the source.

    All processes of a run call it together. With several source domains, their confusion matrices are summed.

    Returns:
      mIoU in percent over the classes of the source's in-domain settings, or over all classes if it has no such
      setting; 0 if no class has a defined IoU.

    Raises:
      UserError: a source domain has no validation split.
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
    """Return the classes scored in the source domain: those of its in-domain settings, else all classes."""
    own = [setting.classes for setting in settings_from(source, data_dir) if not setting.cross_domain]
    names = source_domains(source, data_dir)[0].classes
    return tuple(name for name in names if not own or any(name in classes for classes in own))


def holdout(domain: Domain) -> str:
    """Return the name of the split of a source domain that may be used to select its checkpoint.

    Raises:
      UserError: the domain has no such split.
    """
    splits = domain.counts
    found = [split for split in HOLDOUTS if split in splits]
    if not found:
        raise UserError(
            f"{domain.name} has the splits {', '.join(splits)}, expected one of {', '.join(HOLDOUTS)} to select a "
            "checkpoint on; use the last checkpoint instead (--config.evaluate.select=last)"
        )
    return found[0]


def protocol_text(config: Config, setting: Setting, style_targets: Sequence[str]) -> str:
    """Describe for the report how the scored checkpoint was selected.

    Args:
      config: configuration of the run.
      setting: the setting whose score is described.
      style_targets: target domains from which the run's style statistics were estimated (only on request).
    """
    text = PROTOCOL
    if config.evaluate.select != "last":
        domains = source_domains(config.data.source, config.data.data_dir)
        splits = {domain.name: holdout(domain) for domain in domains}
        chosen = " and ".join(f"the {split} split of the source {name}" for name, split in splits.items())
        seen = any(setting.target == domain.name and domain.eval_split == splits[domain.name] for domain in domains)
        text = f"best checkpoint on {chosen}" + (
            ", which this setting also scores" if seen else "; no target domain was used for model selection"
        )
    if config.evaluate.flips:
        text += "; scores averaged over mirrored windows"
    if style_targets:
        text += f"; the style statistics were estimated with images of {', '.join(style_targets)}"
    return text
