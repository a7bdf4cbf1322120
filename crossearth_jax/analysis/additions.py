"""Additions to the results of an evaluation: examples, baselines, style distances, class features.

The scores are written to `results.json` first. If an addition fails, the scores and all other additions are kept.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging

from crossearth_jax.analysis import baselines
from crossearth_jax.analysis.class_features import class_features
from crossearth_jax.analysis.diagnostics import style_distances, style_examples
from crossearth_jax.benchmark.registry import find_domain, settings_of, source_domains
from crossearth_jax.config import Config
from crossearth_jax.inference.domains import DomainResult
from crossearth_jax.inference.results import score
from crossearth_jax.inference.segmentor import Segmentor
from crossearth_jax.runtime.atomic import write_json, write_npz
from crossearth_jax.runtime.buckets import AnyPath


def add_to_results(config: Config, workdir: AnyPath, segmentor: Segmentor, found: Mapping[str, DomainResult]) -> None:
    """Compute every addition to the results in `workdir`; an addition that fails is left out with a warning.

    Only the first process of a run calls it.

    Args:
      config: gives the source, the style network and the folder of the prepared data.
      workdir: folder of the run; fields are added to its `results.json`, and files to its `evaluation/`.
      segmentor: the run's model.
      found: target domain -> result, as returned by `inference.evaluate.evaluate`.
    """
    source, data_dir = config.data.source, config.data.data_dir
    settings = {setting.name: setting for setting in settings_of(source, config.evaluate.settings, data_dir)}
    targets = list(found)
    with _addition("confusion matrices and examples of images"):
        for setting in settings.values():
            target = find_domain(setting.target, data_dir)
            write_npz(
                workdir / "evaluation" / f"{setting.name}.npz",
                **vars(found[setting.target]),
                classes=np.asarray(target.classes),
                palette=np.asarray(target.palette, np.uint8),
            )
    if config.style is not None:
        with _addition("style distances"):
            distances = style_distances(config, targets)
            _extend(workdir, lambda row: {"style_distance": distances[row["target"]]})
        with _addition("examples of restyled images"):
            images, restyled = style_examples(config)
            write_npz(workdir / "evaluation" / "style_examples.npz", images=images, restyled=restyled)
    with _addition("baselines"):
        classes = source_domains(source, data_dir)[0].classes
        reference = baselines.confusions(source, targets, data_dir)
        _extend(
            workdir,
            lambda row: {
                "baselines": {
                    name: score(settings[row["setting"]], classes, matrices[row["target"]])
                    for name, matrices in reference.items()
                }
            },
        )
    with _addition("features of the classes"):
        arrays = class_features(segmentor, source, targets, data_dir)
        write_npz(workdir / "evaluation" / "class_features.npz", **arrays)


@contextlib.contextmanager
def _addition(what: str) -> Iterator[None]:
    """Catch every error of the block and log it in one line."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())
        logging.warning("left out: %s (%s: %s); the scores are complete", what, type(error).__name__, reason)


def _extend(workdir: AnyPath, values_of: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Add fields to every entry of `results.json`."""
    path = workdir / "results.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {name: row | values_of({**row, "setting": name}) for name, row in rows.items()})
