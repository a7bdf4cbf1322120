"""Entries of `results.json`, computed from confusion matrices; `docs/results.md` describes the fields."""

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
    """Return mIoU over the setting's scored classes, and the IoU of each of them, in percent.

    A pixel predicted as a class that is not scored still counts as an error of its true class. A two-class setting
    also has `object` and `object_iou`, its main score; its `miou` is the mean over both classes.

    Args:
      setting: gives the scored classes.
      names: class names of the target, in the order of the matrix.
      confusion: rows are true classes, columns predicted ones.
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


def row(
    setting: Setting,
    names: Sequence[str],
    confusion: Int[np.ndarray, "k k"],
    step: int | None,
    reliability: Int[np.ndarray, "t 3 bins"] | None = None,
    temperature: float | None = None,
) -> dict[str, Any]:
    """Return the fields that every entry of `results.json` has.

    Args:
      setting: gives source, target and scored classes.
      names: class names of the target, in the order of the matrix.
      confusion: rows are true classes, columns predicted ones.
      step: optimizer steps of the checkpoint; None if unknown.
      reliability: counts of `metrics.reliability` without a temperature and, if there is one, with it; None if they
        were not counted.
      temperature: the temperature of the model; None if none was fitted.
    """
    errors = [] if reliability is None else [_number(100 * metrics.calibration_error(counts)) for counts in reliability]
    return {
        "schema_version": SCHEMA_VERSION,
        "source": setting.source,
        "target": setting.target,
        "gap": list(setting.gap),
        "cross_domain": setting.cross_domain,
        **score(setting, names, confusion),
        "classes": list(setting.classes),
        "accuracy": _number(metrics.accuracy(confusion) * 100),
        "ece": errors[0] if errors else None,
        "ece_calibrated": errors[1] if errors[1:] else None,
        "temperature": temperature and round(temperature, 4),
        "pixels": int(confusion.sum()),
        "checkpoint_step": step,
        "published": setting.published and dataclasses.asdict(setting.published),
    }


def _number(value: Any) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)
