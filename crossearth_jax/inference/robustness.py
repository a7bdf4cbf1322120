"""Robustness to appearance shifts: score a run's model on the test images of its source domain under every shift.

`python -m crossearth_jax.main --config=… --workdir=… --mode=evaluate --shifts`
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, UInt8

from crossearth_jax.augment.shifts import SHIFTS, STRENGTHS, shifted
from crossearth_jax.benchmark import Domain, Setting
from crossearth_jax.benchmark.registry import prepared_directory, settings_from, source_domains
from crossearth_jax.config import Config, UserError
from crossearth_jax.inference.domains import score_domain
from crossearth_jax.inference.evaluate import check_source, scored_classes
from crossearth_jax.inference.results import score
from crossearth_jax.inference.segmentor import Segmentor
from crossearth_jax.inference.windows import SlidingWindows
from crossearth_jax.reporting.run import SHIFTS_VERSION
from crossearth_jax.runtime import parallel
from crossearth_jax.runtime.atomic import write_json
from crossearth_jax.runtime.buckets import AnyPath
from crossearth_jax.runtime.progress import Progress
from crossearth_jax.weights.native import digest

SEED = 0  # for the random part of a shift, so that every model is scored with the same shadows

_shifted = jax.jit(shifted, static_argnums=(0, 2))


def score_shifts(
    config: Config,
    workdir: AnyPath,
    segmentor: Segmentor,
    shifts: Sequence[str] | None = None,
    strengths: Sequence[int] | None = None,
) -> AnyPath:
    """Score the evaluation split of the source, unchanged and under every shift and strength, and write `shifts.json`.

    The file is written after every cell (one shift at one strength). A later call continues from it if model, data
    and shifts are the same. With several source domains, their confusion matrices are summed. All processes of a run
    call it together.

    Args:
      config: gives the source, the folder of the prepared data and the batch size of the windows.
      workdir: folder for the file.
      segmentor: the run's model.
      shifts: names of the shifts to score; None: all.
      strengths: of each shift, from 1 to 5; None: all.

    Returns:
      The path of the file.

    Raises:
      UserError: the model was trained on another domain, or a source domain has no split besides its train split.
    """
    source, data_dir = config.data.source, config.data.data_dir
    check_source(segmentor, source, workdir)
    domains = source_domains(source, data_dir)
    for domain in domains:
        if domain.eval_split in ("", "train"):
            raise UserError(
                f"{domain.name} has only a train split; --shifts needs a split with labels that was not trained on: "
                "prepare the domain with a test split, or leave --shifts out"
            )
    flips = config.evaluate.flips
    path = workdir / "shifts.json"
    identity = _identity(domains, segmentor, data_dir) | ({"flips": True} if flips else {})
    setting = _setting(source, data_dir)
    windows = segmentor.sliding_windows(batch_size=config.evaluate.batch_size, flips=flips)
    cells = [("clean", 0), *((name, strength) for name in shifts or SHIFTS for strength in strengths or STRENGTHS)]
    found = _stored(path, identity)
    done = [cell for cell in cells if parallel.all_agree(cell in found)]
    progress = Progress(len(cells), "cells of appearance shifts", done=len(done))
    for name, strength in (cell for cell in cells if cell not in done):
        confusion = _confusion(windows, domains, data_dir, name, strength)
        found[name, strength] = score(setting, domains[0].classes, confusion)
        if jax.process_index() == 0:
            write_json(path, _content(identity, domains, segmentor, setting, found))
        progress.advance(note=f"{name} {strength}" if strength else name)
    return path


def _setting(source: str, data_dir: str) -> Setting:
    """Return a setting that scores the source domain, with the classes and object of its in-domain setting, if any."""
    own = [setting for setting in settings_from(source, data_dir) if not setting.cross_domain]
    objects = {setting.object for setting in own}
    return Setting(
        name="shifts",
        source=source,
        target=source,
        gap=(),
        classes=scored_classes(source, data_dir),
        object=objects.pop() if len(objects) == 1 else None,
    )


def _confusion(
    windows: SlidingWindows, domains: tuple[Domain, ...], data_dir: str, name: str, strength: int
) -> Int[np.ndarray, "k k"]:
    appearance = None if strength == 0 else functools.partial(_changed, name, strength)
    matrices = [score_domain(windows, d, d.eval_split, data_dir, appearance=appearance).confusion for d in domains]
    return np.sum(matrices, axis=0)


def _changed(name: str, strength: int, image: UInt8[np.ndarray, "h w 3"], record: int) -> UInt8[np.ndarray, "h w 3"]:
    """Return one image under a shift; its random part depends only on `SEED` and the record number."""
    key = jax.random.fold_in(jax.random.key(SEED), record)
    return np.asarray(_shifted(name, image[None], strength, key)[0])


def _identity(domains: tuple[Domain, ...], segmentor: Segmentor, data_dir: str) -> dict[str, Any]:
    """Return everything on which the scores depend."""
    prepared = [prepared_directory(domain.name, data_dir) for domain in domains]
    infos = [(directory / "dataset_info.json").read_bytes() for directory in prepared if directory is not None]
    return {
        "model": digest(segmentor.params),
        "data": [hashlib.sha256(info).hexdigest() for info in infos],
        "window": segmentor.window,
        "stride": segmentor.stride,
        "shifts": {name: list(shift.values) for name, shift in SHIFTS.items()},
    }


def _stored(path: AnyPath, identity: Mapping[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the scores of an earlier call with the same identity, by shift and strength; empty if there are none."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["schema_version"] != SHIFTS_VERSION or stored["identity"] != identity:
            return {}
        found = {("clean", 0): stored["clean"]}
        for name, shift in stored["shifts"].items():
            for strength, scores in shift["strengths"].items():
                found[name, int(strength)] = {key: value for key, value in scores.items() if key != "value"}
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _content(
    identity: Mapping[str, Any],
    domains: tuple[Domain, ...],
    segmentor: Segmentor,
    setting: Setting,
    found: Mapping[tuple[str, int], dict[str, Any]],
) -> dict[str, Any]:
    """Return the content of `shifts.json`, as described in `docs/results.md`."""
    return {
        "schema_version": SHIFTS_VERSION,
        "source": setting.source,
        "splits": {domain.name: domain.eval_split for domain in domains},
        "classes": list(setting.classes),
        "checkpoint_step": segmentor.description.step,
        "clean": found["clean", 0],
        "shifts": {
            name: {
                "parameter": shift.parameter,
                "strengths": {
                    str(strength): {"value": shift.values[strength - 1], **found[name, strength]}
                    for strength in STRENGTHS
                    if (name, strength) in found
                },
            }
            for name, shift in SHIFTS.items()
        },
        "identity": dict(identity),
    }
