"""Evaluation: a source model on every target of its settings, one confusion matrix per domain.

`python -m crossearth_jax.main --config=… --workdir=… --mode=evaluate`
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from crossearth_jax import benchmark
from crossearth_jax.benchmark import Setting
from crossearth_jax.config import Config, UserError
from crossearth_jax.inference import metrics
from crossearth_jax.inference.domains import DomainResult, score_domain, taxonomy_of
from crossearth_jax.inference.results import row, score
from crossearth_jax.inference.segmentor import Segmentor
from crossearth_jax.models.network import SegmentationModel
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
    source, data_dir = config.data.source, config.data.data_dir
    described = segmentor.description
    if described.trained_on != source:
        raise UserError(
            f"the model in {workdir} was trained on {described.trained_on or 'an unknown domain'}, the configuration's "
            f"source is {source}; use another --workdir, or the configuration that the run was started with"
        )
    settings = benchmark.settings_of(source, config.evaluate.settings)
    windows = segmentor.sliding_windows(batch_size=config.evaluate.batch_size)
    found = {
        target: score_domain(
            windows, target, benchmark.DOMAINS[target].eval_split, data_dir, examples=config.evaluate.examples
        )
        for target in dict.fromkeys(setting.target for setting in settings)
    }
    if jax.process_index() == 0:
        rows = {}
        for setting in settings:
            protocol = protocol_text(described.style_targets, selection(config, setting))
            rows[setting.name] = row(setting, found[setting.target].confusion, described.step) | {"protocol": protocol}
        for earlier in (workdir / "evaluation").glob("*.npz"):  # additions to scores that are replaced now
            earlier.unlink()
        write_json(workdir / "results.json", rows)
        for setting in settings:
            logging.info("%s: mIoU %.2f", setting.name, rows[setting.name]["miou"])
    return found


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
    names = taxonomy_of(setting.target).classes
    if segmentor.classes != len(names):
        raise UserError(
            f"the model has {segmentor.classes} classes, {setting.target} has {len(names)}: {', '.join(names)}"
        )
    windows = segmentor.sliding_windows(batch_size=batch_size)
    split = benchmark.DOMAINS[setting.target].eval_split
    result = score_domain(windows, setting.target, split, data_dir, examples=4)
    return score(setting, result.confusion), result


def validate(config: Config, params: Mapping[str, jax.Array]) -> float:
    """Scores parameters in training on the validation split of the source; all processes call it together.

    Returns:
      mIoU in percent, over the classes of the source's in-domain setting if it has one, else over all.

    Raises:
      UserError: the source has no such split.
    """
    source = config.data.source
    model = SegmentationModel(dataclasses.replace(config.model, mim=None))
    described = Description(model=model.config, window=config.evaluate.window, stride=config.evaluate.stride)
    windows = Segmentor(model, dict(params), described).sliding_windows(batch_size=config.evaluate.batch_size)
    confusion = score_domain(windows, source, holdout(source), config.data.data_dir).confusion
    names = taxonomy_of(source).classes
    own = [setting.classes for setting in benchmark.settings_from(source) if setting.target == source]
    iou = metrics.iou(confusion)[[names.index(name) for name in (own[0] if own else names)]]
    return float(np.nanmean(iou) * 100) if np.isfinite(iou).any() else 0.0


def holdout(source: str) -> str:
    """The split of a source that its checkpoints may be chosen on.

    Raises:
      UserError: it has none.
    """
    splits = benchmark.DOMAINS[source].counts
    found = [split for split in HOLDOUTS if split in splits]
    if not found:
        raise UserError(
            f"{source} has the splits {', '.join(splits)}, but none to choose a checkpoint on; "
            "score the last one (evaluate.select=last)"
        )
    return found[0]


def selection(config: Config, setting: Setting) -> str:
    """How the scored checkpoint was chosen, in words for the report."""
    if config.evaluate.select == "last":
        return PROTOCOL
    source, split = config.data.source, holdout(config.data.source)
    seen = setting.target == source and benchmark.DOMAINS[source].eval_split == split
    chosen = f"best checkpoint on the {split} split of the source {source}"
    return f"{chosen}, which this row scores too" if seen else f"{chosen}; nothing was chosen on a target"


def protocol_text(style_targets: Sequence[str], selection: str = PROTOCOL) -> str:
    """How the scored checkpoint was chosen, and which targets its styles were estimated from (by request only)."""
    if not style_targets:
        return selection
    return f"{selection}; not blind to {', '.join(style_targets)}, whose styles are in the style statistics"
