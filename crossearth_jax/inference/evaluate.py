"""Evaluation: a source model on every target of its settings, by sliding window, one confusion matrix per domain.

`python -m crossearth_jax.main --config=… --workdir=… --mode=evaluate`
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, UInt8

from crossearth_jax import benchmark
from crossearth_jax.analysis import baselines, diagnostics
from crossearth_jax.analysis.class_features import write_class_features
from crossearth_jax.benchmark import Domain, Resize, Setting
from crossearth_jax.config import Config, EvaluateConfig, MeshConfig, ModelConfig, UserError
from crossearth_jax.inference import metrics
from crossearth_jax.inference.resizing import fitted_size, predict_labels
from crossearth_jax.inference.segmentor import Segmentor
from crossearth_jax.inputs.loader import evaluation_batches
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.results import row, score, taxonomy
from crossearth_jax.runtime import parallel
from crossearth_jax.runtime.atomic import replacing, write_json
from crossearth_jax.runtime.progress import Progress
from crossearth_jax.training import initialise
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
    """Evaluates the config's settings: the scores go to `results.json` first, then whatever can be added to them.

    All processes of a run take part; the first one writes. No addition can take the scores away: one that fails is
    left out with a warning.

    Returns:
      What was written to `results.json`; nothing on other processes.
    """
    settings = benchmark.settings_of(config.data.source, config.evaluate.settings)
    style_targets = initialise.style_targets(config)
    evaluator = Evaluator(SegmentationModel(config.model), config.evaluate, mesh)
    with jax.set_mesh(mesh):
        found = {
            target: evaluator.domain(params, target, benchmark.DOMAINS[target].eval_split, config.data.data_dir)
            for target in dict.fromkeys(setting.target for setting in settings)
        }
    rows = {}
    for setting in settings:
        protocol = protocol_text(style_targets, selection(config, setting))
        rows[setting.name] = row(setting, found[setting.target].confusion, step) | {"protocol": protocol}
    if jax.process_index() == 0:
        for earlier in (workdir / "evaluation").glob("*.npz"):  # additions to scores that are replaced now
            earlier.unlink()
        write_json(workdir / "results.json", rows)
        for name, values in rows.items():
            logging.info("%s: mIoU %s", name, "-" if values["miou"] is None else f"{values['miou']:.2f}")
    with addition("features of the classes"), jax.set_mesh(mesh):
        write_class_features(workdir / "evaluation" / "class_features.npz", config, mesh, params, found)
    # The rest is the first process's work, with its own copy of the parameters; the others wait for it in `main`.
    return _with_additions(config, workdir, params, settings, found, rows) if jax.process_index() == 0 else {}


def _with_additions(
    config: Config,
    workdir: Path,
    params: Params,
    settings: Sequence[Setting],
    found: Mapping[str, DomainResult],
    rows: dict[str, Any],
) -> dict[str, Any]:
    """Adds what one process can find out about the results; `results.json` grows with it."""
    with addition("confusion matrices and examples of images"):
        for setting in settings:
            write_domain(workdir, setting, found[setting.target])
    if config.style is not None:
        with addition("style distances"):
            distances = diagnostics.style_distances(config, _style(params), found)
            rows = {name: values | {"style_distance": distances[values["target"]]} for name, values in rows.items()}
            write_json(workdir / "results.json", rows)
        with addition("examples of restyled images"):
            diagnostics.write_style_examples(workdir / "evaluation" / "style_examples.npz", config, _style(params))
    with addition("baselines"):
        reference = baselines.confusions(config.data.source, list(found), config.data.data_dir)
        scores = {
            setting.name: {name: score(setting, matrices[setting.target]) for name, matrices in reference.items()}
            for setting in settings
        }
        rows = {name: values | {"baselines": scores[name]} for name, values in rows.items()}
        write_json(workdir / "results.json", rows)
    return rows


def _style(params: Params) -> Params:
    """This process's own copy of the style network's parameters, which are whole on every device."""
    return {name: jnp.asarray(parallel.fetch(params[name])) for name in params if name.startswith("style/")}


@contextlib.contextmanager
def addition(what: str) -> Iterator[None]:
    """Lets the block fail, whatever the reason: one line says so, and the results stay as they are."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())
        logging.warning("left out: %s (%s: %s); the scores are complete without", what, type(error).__name__, reason)


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


def protocol_text(style_targets: Sequence[str], selection: str = PROTOCOL) -> str:
    """How the scored checkpoint was chosen, and which targets its styles were estimated from (by request only)."""
    if not style_targets:
        return selection
    return f"{selection}; not blind to {', '.join(style_targets)}, whose styles are in the style statistics"


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
