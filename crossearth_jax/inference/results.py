"""What a confusion matrix becomes: one setting's entry of `results.json`, as `docs/results.md` describes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from crossearth_jax.benchmark import Setting
from crossearth_jax.inference import metrics
from crossearth_jax.reporting.run import SCHEMA_VERSION


def score(setting: Setting, names: Sequence[str], confusion: Int[np.ndarray, "k k"]) -> dict[str, Any]:
    """mIoU over the setting's scored classes and IoU per class, in percent; predictions of any class count.

    A two-class setting also has `object` and `object_iou`, its headline; its mIoU is the two-class mean.

    Args:
      setting: says which classes are scored.
      names: of the target's classes, in the order of the matrix.
      confusion: rows are the truth.
    """
    iou = metrics.iou(confusion) * 100
    scored = [iou[names.index(name)] for name in setting.classes]
    of_object: dict[str, Any] = {}
    if setting.object is not None:
        of_object = {"object": setting.object, "object_iou": _number(iou[names.index(setting.object)])}
    return {
        "miou": _number(metrics.mean(np.asarray(scored))),
        "iou": {name: _number(iou[names.index(name)]) for name in setting.classes},
        **of_object,
    }


def row(setting: Setting, names: Sequence[str], confusion: Int[np.ndarray, "k k"], step: int | None) -> dict[str, Any]:
    """What every entry of `results.json` holds.

    Args:
      setting: source, target and the classes that are scored.
      names: of the target's classes, in the order of the matrix.
      confusion: rows are the truth.
      step: of the checkpoint, where one is known.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "source": setting.source,
        "target": setting.target,
        "gap": list(setting.gap),
        "cross_domain": setting.cross_domain,
        **score(setting, names, confusion),
        "classes": list(setting.classes),
        "accuracy": _number(metrics.accuracy(confusion) * 100),
        "pixels": int(confusion.sum()),
        "checkpoint_step": step,
        "published": setting.published and dataclasses.asdict(setting.published),
    }


def _number(value: Any) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)
