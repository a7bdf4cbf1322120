"""Evaluation: a source model on every target of its settings, by sliding window, one confusion matrix per domain.

`python -m crossearth_jax.main --config=… --workdir=… --mode=evaluate`
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, UInt8

from crossearth_jax import baselines, benchmark, diagnostics, initialise, metrics, parallel
from crossearth_jax.atomic import replacing, write_json
from crossearth_jax.benchmark import Domain, Resize, Setting, Taxonomy
from crossearth_jax.class_features import write_class_features
from crossearth_jax.config import Config, EvaluateConfig, MeshConfig, ModelConfig, UserError
from crossearth_jax.inputs.pipeline import evaluation_batches
from crossearth_jax.models.segmentor import SegmentationModel
from crossearth_jax.predictor import Segmentor
from crossearth_jax.progress import Progress
from crossearth_jax.protocol import fitted_size, predict_labels
from crossearth_jax.training.state import Params

PROTOCOL = "last checkpoint; nothing was chosen on a target"
MANY_SIZES = 16  # sizes of image in one domain that are worth a warning
EXAMPLE_SIDE = 512  # pixels, of the images a report shows
HOLDOUTS = ("validation", "val")  # names of splits that a source's checkpoints may be chosen on


@dataclasses.dataclass(frozen=True)
class DomainResult:
    """What evaluation keeps of one domain."""

    confusion: Int[np.ndarray, "k k"]  # int64, rows are the truth
    images: UInt8[np.ndarray, "n h w 3"]  # examples
    labels: UInt8[np.ndarray, "n h w"]
    predictions: UInt8[np.ndarray, "n h w"]


class Evaluator:
    """Scores one model on domains; compiles once per size of image and rule of resizing."""

    def __init__(self, model: SegmentationModel, config: EvaluateConfig, mesh: Mesh):
        self._model, self._config, self._mesh = model, config, mesh
        self._shards = parallel.batch_shards(mesh)
        self._steps: dict[Resize | None, Any] = {}

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return sum(step._cache_size() for step in self._steps.values())

    def domain(self, params: Params, name: str, split: str, data_dir: str) -> DomainResult:
        """Evaluates `params` on one split of one domain.

        Raises:
          UserError: the domain is not prepared.
        """
        size = -(-self._config.batch_size // self._shards) * self._shards
        batches = evaluation_batches(name, split, size, data_dir, *parallel.input_shard(self._mesh))
        return self._accumulate(params, benchmark.DOMAINS[name], batches)

    def _accumulate(self, params: Params, domain: Domain, batches: Iterable[Any]) -> DomainResult:
        classes = len(taxonomy(domain.name).classes)
        confusion = np.zeros((classes, classes), np.int64)
        examples = Examples(self._config.examples)
        progress = Progress(None, "batches")
        sizes: set[tuple[int, int]] = set()
        for batch in batches:
            _log_size(domain, batch["label"].shape[1:], sizes)
            arrays = parallel.global_batch(dict(batch), self._mesh)
            matrix, predicted = self._step(domain.resize)(params, arrays["image"], arrays["label"], arrays["valid"])
            confusion += jax.device_get(matrix)
            examples.add(batch, predicted)
            progress.advance(note=domain.name)
        return DomainResult(confusion, *examples.arrays())

    def _step(self, resize: Resize | None) -> Any:
        """The jitted step of domains that are resized by this rule."""
        if resize not in self._steps:
            self._steps[resize] = jit_evaluation_step(self._model, self._config, resize, self._mesh)
        return self._steps[resize]


def jit_evaluation_step(model: SegmentationModel, config: EvaluateConfig, resize: Resize | None, mesh: Mesh) -> Any:
    """`evaluation_step` of (params, images, labels, valid), jitted with the batch split over the mesh."""
    batch, whole = parallel.batch_sharding(mesh), parallel.replicated(mesh)
    step = functools.partial(evaluation_step, model, config, resize)
    return jax.jit(step, in_shardings=(None, batch, batch, batch), out_shardings=(whole, batch))


def _log_size(domain: Domain, size: tuple[int, int], known: set[tuple[int, int]]) -> None:
    """Logs every new size of image, since each is compiled for."""
    if size not in known:
        known.add(size)
        logging.info(
            "%s: images of %d x %d are scored at %d x %d (size %d of this domain, compiled once)",
            domain.name, *size, *fitted_size(size, domain.resize), len(known),
        )  # fmt: skip
        if len(known) == MANY_SIZES:
            logging.warning("%s has %d sizes of image so far, and each is compiled for", domain.name, len(known))


def evaluation_step(
    model: SegmentationModel,
    config: EvaluateConfig,
    resize: Resize | None,
    params: Params,
    images: UInt8[Array, "b h w 3"],
    labels: UInt8[Array, "b h w"],
    valid: Bool[Array, " b"],
) -> tuple[Int[Array, "k k"], UInt8[Array, "b h w"]]:
    """Confusion matrix of a batch (padding examples and ignored pixels left out) and the predicted classes."""
    predicted = predict_labels(model, config, params, images, resize)
    labels = jnp.where(valid[:, None, None], labels, benchmark.IGNORE)
    return metrics.confusion(labels, predicted, model.config.classes), predicted


class Examples:
    """The first images of a domain, all of one size, thinned to a side of at most `EXAMPLE_SIDE` pixels."""

    def __init__(self, count: int):
        self._count = count
        self._kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, batch: Mapping[str, np.ndarray], predicted: jax.Array) -> None:
        """Keeps what is still wanted of this process's rows of a batch."""
        missing = self._count - len(self._kept)
        if missing <= 0:
            return
        step = -(-max(predicted.shape[1:]) // EXAMPLE_SIDE)
        if self._kept and self._kept[0][1].shape != predicted[0, ::step, ::step].shape:
            return
        keep = np.flatnonzero(batch["valid"])[:missing]
        columns = (batch["image"][keep], batch["label"][keep], parallel.local_rows(predicted)[keep])
        self._kept += zip(*(column[:, ::step, ::step] for column in columns), strict=True)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images, labels and predictions; without any, arrays of length 0."""
        if not self._kept:
            return np.zeros((0, 1, 1, 3), np.uint8), np.zeros((0, 1, 1), np.uint8), np.zeros((0, 1, 1), np.uint8)
        images, labels, predictions = (np.stack(column) for column in zip(*self._kept, strict=True))
        return images, labels, predictions


def taxonomy(domain: str) -> Taxonomy:
    """The classes of a labelled domain."""
    return benchmark.TAXONOMIES[str(benchmark.DOMAINS[domain].taxonomy)]


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


def validate(config: Config, mesh: Mesh, params: Params) -> float:
    """mIoU, in percent, on the validation split of the source: of the classes of its in-domain setting, else of all.

    Raises:
      UserError: the source has no such split.
    """
    source = config.data.source
    evaluator = _evaluator(config.model, config.evaluate, mesh)
    confusion = evaluator.domain(params, source, holdout(source), config.data.data_dir).confusion
    names = taxonomy(source).classes
    own = [setting.classes for setting in benchmark.settings_from(source) if setting.target == source]
    iou = metrics.iou(confusion)[[names.index(name) for name in (own[0] if own else names)]]
    return float(np.nanmean(iou) * 100) if np.isfinite(iou).any() else 0.0


@functools.lru_cache(maxsize=1)
def _evaluator(model: ModelConfig, config: EvaluateConfig, mesh: Mesh) -> Evaluator:
    """One for all validations of a run: it compiles once."""
    return Evaluator(SegmentationModel(model), config, mesh)


def selection(config: Config, setting: Setting) -> str:
    """How the scored checkpoint was chosen, in words for the report."""
    if config.evaluate.select == "last":
        return PROTOCOL
    source, split = config.data.source, holdout(config.data.source)
    seen = setting.target == source and benchmark.DOMAINS[source].eval_split == split
    chosen = f"best checkpoint on the {split} split of the source {source}"
    return f"{chosen}, which this row scores too" if seen else f"{chosen}; nothing was chosen on a target"


def evaluate(config: Config, workdir: Path, mesh: Mesh, params: Params, step: int) -> dict[str, Any]:
    """Evaluates the config's settings and writes `results.json` and `evaluation/`.

    All processes of a run take part; the first one writes.

    Returns:
      What was written to `results.json`; nothing on other processes.
    """
    settings = benchmark.settings_of(config.data.source, config.evaluate.settings)
    evaluator = Evaluator(SegmentationModel(config.model), config.evaluate, mesh)
    with jax.set_mesh(mesh):
        found = {
            target: evaluator.domain(params, target, benchmark.DOMAINS[target].eval_split, config.data.data_dir)
            for target in dict.fromkeys(setting.target for setting in settings)
        }
        write_class_features(workdir / "evaluation" / "class_features.npz", config, mesh, params, found)
    if jax.process_index() != 0:
        return {}
    distances: dict[str, float] = {}
    if config.style is not None:
        # These are whole on every device; the first process goes on alone with its own copy.
        style = {name: jnp.asarray(parallel.fetch(params[name])) for name in params if name.startswith("style/")}
        distances = diagnostics.style_distances(config, style, found)
        diagnostics.write_style_examples(workdir / "evaluation" / "style_examples.npz", config, style)
    reference = baselines.confusions(config.data.source, list(found), config.data.data_dir)
    style_targets = initialise.style_targets(config)
    results = {}
    for setting in settings:
        result = found[setting.target]
        results[setting.name] = row(setting, result.confusion, step) | {
            "protocol": protocol_text(style_targets, selection(config, setting)),
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
    """mIoU over the setting's scored classes and IoU per class, in percent; predictions of any class count.

    A two-class setting also has `object` and `object_iou`, its headline; its mIoU is the two-class mean.
    """
    names = taxonomy(setting.target).classes
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


def row(setting: Setting, confusion: Int[np.ndarray, "k k"], step: int | None) -> dict[str, Any]:
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
        "published": setting.published and dataclasses.asdict(setting.published),
    }


def protocol_text(style_targets: Sequence[str], selection: str = PROTOCOL) -> str:
    """How the scored checkpoint was chosen, and which targets its styles were estimated from (by request only)."""
    if not style_targets:
        return selection
    return f"{selection}; not blind to {', '.join(style_targets)}, whose styles are in the style statistics"


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
