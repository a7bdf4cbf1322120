"""Evaluation: a source model on every target of its settings, by sliding window, one confusion matrix per domain.

`python -m crossearth_jax.main --config=… --workdir=… --mode=evaluate`
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt8

from crossearth_jax import baselines, benchmark, diagnostics, metrics, parallel
from crossearth_jax.atomic import replacing, write_json
from crossearth_jax.benchmark import Setting, Taxonomy
from crossearth_jax.class_features import write_class_features
from crossearth_jax.config import Config, EvaluateConfig, MeshConfig, UserError
from crossearth_jax.inputs.pipeline import evaluation_batches
from crossearth_jax.models.segmentor import SegmentationModel
from crossearth_jax.ops.normalization import normalize
from crossearth_jax.ops.tiling import sliding_scores
from crossearth_jax.predictor import Segmentor
from crossearth_jax.progress import Progress
from crossearth_jax.training.state import Params

PROTOCOL = "last checkpoint; nothing was chosen on a target"


@dataclasses.dataclass(frozen=True)
class DomainResult:
    """What evaluation keeps of one domain."""

    confusion: Int[np.ndarray, "k k"]  # int64, rows are the truth
    images: UInt8[np.ndarray, "n h w 3"]  # examples
    labels: UInt8[np.ndarray, "n h w"]
    predictions: UInt8[np.ndarray, "n h w"]


class Evaluator:
    """Scores one model on domains; compiles once per image size."""

    def __init__(self, model: SegmentationModel, config: EvaluateConfig, mesh: Mesh):
        self._config, self._mesh = config, mesh
        self._shards = parallel.batch_shards(mesh)
        batch, whole = parallel.batch_sharding(mesh), parallel.replicated(mesh)
        step = functools.partial(evaluation_step, model, config)
        self._step = jax.jit(step, in_shardings=(None, batch, batch, batch), out_shardings=(whole, batch))

    def domain(self, params: Params, name: str, split: str, data_dir: str) -> DomainResult:
        """Evaluates `params` on one split of one domain.

        Raises:
          UserError: the domain is not prepared.
        """
        size = -(-self._config.batch_size // self._shards) * self._shards
        batches = evaluation_batches(name, split, size, data_dir, jax.process_index(), jax.process_count())
        return self._accumulate(params, name, batches)

    def _accumulate(self, params: Params, name: str, batches: Iterable[Any]) -> DomainResult:
        classes = len(taxonomy(name).classes)
        confusion = np.zeros((classes, classes), np.int64)
        examples: list[tuple[Any, Any, Any]] = []
        progress = Progress(None, "batches")
        for batch in batches:
            arrays = parallel.global_batch(dict(batch), self._mesh)
            matrix, predicted = self._step(params, arrays["image"], arrays["label"], arrays["valid"])
            confusion += np.asarray(matrix, np.int64)
            examples += _examples(batch, predicted, self._config.examples - len(examples))
            progress.advance(note=name)
        images, labels, predictions = (np.stack(column) for column in zip(*examples, strict=True))
        return DomainResult(confusion, images, labels, predictions)


def evaluation_step(
    model: SegmentationModel,
    config: EvaluateConfig,
    params: Params,
    images: UInt8[Array, "b h w 3"],
    labels: UInt8[Array, "b h w"],
    valid: Bool[Array, " b"],
) -> tuple[Int[Array, "k k"], UInt8[Array, "b h w"]]:
    """Confusion matrix of a batch (padding examples and ignored pixels left out) and the predicted classes."""
    predicted = predict_labels(model, config, params, images)
    labels = jnp.where(valid[:, None, None], labels, benchmark.IGNORE)
    return metrics.confusion(labels, predicted, model.config.classes), predicted


def predict_scores(
    model: SegmentationModel, config: EvaluateConfig, params: Params, images: UInt8[Array, "b h w 3"]
) -> Float[Array, "b h w k"]:
    """Class scores of images of any size by sliding window."""
    score = functools.partial(model.scores, params)
    return sliding_scores(score, normalize(images), config.window, config.stride)


def predict_labels(
    model: SegmentationModel, config: EvaluateConfig, params: Params, images: UInt8[Array, "b h w 3"]
) -> UInt8[Array, "b h w"]:
    """Most probable classes of images of any size."""
    return jnp.argmax(predict_scores(model, config, params, images), -1).astype(jnp.uint8)


def _examples(batch: Mapping[str, np.ndarray], predicted: jax.Array, count: int) -> list[tuple[Any, Any, Any]]:
    if count <= 0 or not predicted.is_fully_addressable:
        return []
    keep = np.flatnonzero(batch["valid"])[:count]
    columns = (batch["image"][keep], batch["label"][keep], np.asarray(predicted)[keep])
    return list(zip(*columns, strict=True))


def taxonomy(domain: str) -> Taxonomy:
    """The classes of a labelled domain."""
    return benchmark.TAXONOMIES[str(benchmark.DOMAINS[domain].taxonomy)]


def evaluate(config: Config, workdir: Path, mesh: Mesh, params: Params, step: int) -> dict[str, Any]:
    """Evaluates every setting that starts at the config's source and writes `results.json` and `evaluation/`.

    Returns:
      What was written to `results.json`.
    """
    settings = benchmark.settings_from(config.data.source)
    evaluator = Evaluator(SegmentationModel(config.model), config.evaluate, mesh)
    with jax.set_mesh(mesh):
        found = {
            target: evaluator.domain(params, target, benchmark.DOMAINS[target].eval_split, config.data.data_dir)
            for target in dict.fromkeys(setting.target for setting in settings)
        }
        write_class_features(workdir / "evaluation" / "class_features.npz", config, mesh, params, found)
    distances: dict[str, float] = {}
    if config.style is not None:
        distances = diagnostics.style_distances(config, params, found)
        diagnostics.write_style_examples(workdir / "evaluation" / "style_examples.npz", config, params)
    reference = baselines.confusions(config.data.source, list(found), config.data.data_dir)
    results = {}
    for setting in settings:
        result = found[setting.target]
        results[setting.name] = row(setting, result.confusion, step) | {
            "style_distance": distances.get(setting.target),
            "baselines": {name: score(setting, matrices[setting.target]) for name, matrices in reference.items()},
        }
        write_domain(workdir, setting, result)
        logging.info("%s: mIoU %.2f", setting.name, results[setting.name]["miou"])
    write_json(workdir / "results.json", results)
    return results


def evaluate_model(
    model: Segmentor, setting: Setting, data_dir: str, batch_size: int = 4
) -> tuple[dict[str, Any], DomainResult]:
    """Scores a loaded model on one setting, on all local devices.

    Args:
      model: of any origin, with the classes of the target.
      setting: its target must be prepared.
      data_dir: folder of the prepared datasets.
      batch_size: images scored at once, at least one per device.

    Returns:
      mIoU and IoU by class as in `results.json`, and what they were computed from.

    Raises:
      UserError: the target is not prepared, or the model has another number of classes.
    """
    names = taxonomy(setting.target).classes
    if model.classes != len(names):
        raise UserError(f"the model has {model.classes} classes, {setting.target} has {len(names)}: {', '.join(names)}")
    config = EvaluateConfig(window=model.window, stride=model.stride, batch_size=batch_size)
    mesh = parallel.make_mesh(MeshConfig(), jax.local_devices())
    params = jax.device_put(dict(model.params), parallel.replicated(mesh))
    split = benchmark.DOMAINS[setting.target].eval_split
    with jax.set_mesh(mesh):
        result = Evaluator(model.model, config, mesh).domain(params, setting.target, split, data_dir)
    return score(setting, result.confusion), result


def score(setting: Setting, confusion: Int[np.ndarray, "k k"]) -> dict[str, Any]:
    """mIoU over the setting's scored classes and IoU per class, in percent; predictions of any class count."""
    names = taxonomy(setting.target).classes
    iou = metrics.iou(confusion) * 100
    scored = [iou[names.index(name)] for name in setting.classes]
    return {
        "miou": _number(np.nanmean(scored)),
        "iou": {name: _number(iou[names.index(name)]) for name in setting.classes},
    }


def row(setting: Setting, confusion: Int[np.ndarray, "k k"], step: int) -> dict[str, Any]:
    """One setting's entry of `results.json`."""
    return {
        "source": setting.source,
        "target": setting.target,
        "gap": list(setting.gap),
        "cross_domain": setting.cross_domain,
        **score(setting, confusion),
        "classes": list(setting.classes),
        "accuracy": _number(metrics.accuracy(confusion) * 100),
        "pixels": int(confusion.sum()),
        "checkpoint_step": step,
        "protocol": PROTOCOL,
        "published": setting.published and dataclasses.asdict(setting.published),
    }


def _number(value: Any) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


def write_domain(workdir: Path, setting: Setting, result: DomainResult) -> None:
    """Writes a setting's confusion matrix and examples to `evaluation/<setting>.npz`, atomically."""
    path = workdir / "evaluation" / f"{setting.name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = taxonomy(setting.target)
    arrays = dataclasses.asdict(result) | {
        "classes": np.asarray(facts.classes),
        "palette": np.asarray(facts.palette, np.uint8),
    }
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
