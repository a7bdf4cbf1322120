"""Read the files in the folder of an evaluated run; errors name the missing or malformed file and field."""

from __future__ import annotations

import dataclasses
import datetime
import json
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from crossearth_jax.config import UserError
from crossearth_jax.runtime.buckets import AnyPath, check_access, modified

# Format version of an entry of results.json. It changes when a field is removed or changes its meaning, but not when a
# field is added. Every entry has it, since the keys of the file are settings only and entries may be copied elsewhere.
SCHEMA_VERSION = 1
SHIFTS_VERSION = 1  # format version of shifts.json, which changes by the same rule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """mIoU and class IoU in percent; None where there are no pixels to count."""

    miou: float | None
    iou: Mapping[str, float | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell(Score):
    """One entry of `results.json`: the score of the run's model, trained on `source`, on the domain `target`."""

    name: str
    source: str
    target: str
    gap: tuple[str, ...]
    cross_domain: bool
    classes: tuple[str, ...]  # scored classes, over which the mIoU averages
    accuracy: float | None
    pixels: int | None
    checkpoint_step: int
    protocol: str
    baselines: Mapping[str, Score]
    published: float | None
    published_source: str
    style_distance: float | None  # Fréchet distance between the style codes of source and target
    ece: float | None = None  # expected calibration error in percent
    ece_calibrated: float | None = None  # the same with the temperature
    temperature: float | None = None  # fitted on the hold-out of the source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The content of one `evaluation/<setting>.npz`: confusion matrix and examples."""

    confusion: Int[np.ndarray, "k k"]  # rows are true classes, columns predicted ones
    classes: tuple[str, ...]
    palette: UInt8[np.ndarray, "k 3"]
    images: UInt8[np.ndarray, "n h w 3"]
    labels: UInt8[np.ndarray, "n h w"]
    predictions: UInt8[np.ndarray, "n h w"]

    @property
    def colours(self) -> dict[str, tuple[int, int, int]]:
        """RGB colour by class name, in the order of the class ids."""
        colours = ((int(r), int(g), int(b)) for r, g, b in self.palette)
        return dict(zip(self.classes, colours, strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """The logged values of one quantity during training."""

    steps: Int[np.ndarray, " n"]
    values: Float[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StyleExamples:
    """Training images before and after Earth-Style Injection."""

    images: UInt8[np.ndarray, "n h w 3"]
    restyled: UInt8[np.ndarray, "n h w 3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassFeatures:
    """The content of `evaluation/class_features.npz`: a mean feature vector per image and class."""

    values: Float[np.ndarray, "n c"]
    classes: Int[np.ndarray, " n"]  # indices into `class_names`
    domains: Int[np.ndarray, " n"]  # indices into `domain_names`
    class_names: tuple[str, ...]
    domain_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShiftScores:
    """The scores of one kind of appearance shift, for the strengths that are finished."""

    parameter: str  # name of the shift's parameter, with its unit
    values: Mapping[int, float]  # strength -> value of the parameter
    scores: Mapping[int, Score]  # strength -> scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Robustness:
    """The content of `shifts.json`: scores on the source's own test images under appearance shifts."""

    source: str
    clean: Score
    shifts: Mapping[str, ShiftScores]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that a report shows; `evaluations` and `metrics` are empty and other parts None if a run has none."""

    path: AnyPath
    name: str
    date: datetime.date  # date of the evaluation
    config: Mapping[str, str]  # dotted key -> value as text
    cells: tuple[Cell, ...]
    evaluations: Mapping[str, Evaluation]  # by name of the setting
    metrics: Mapping[str, Series]  # by name of the quantity
    styles: StyleExamples | None
    features: ClassFeatures | None = None
    robustness: Robustness | None = None

    def evaluated(self) -> Iterator[tuple[Cell, Evaluation]]:
        """Yield the settings that have an `Evaluation`: in-domain first, then by the number of gaps."""
        for cell in sorted(self.cells, key=lambda cell: (cell.cross_domain, len(cell.gap))):
            if cell.name in self.evaluations:
                yield cell, self.evaluations[cell.name]

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes of all settings; those in `palette` come first, in the order of the taxonomy."""
        reported = dict.fromkeys(name for cell in self.cells for name in cell.iou)
        return tuple(dict.fromkeys([*(name for name in self.palette if name in reported), *reported]))

    @property
    def palette(self) -> Mapping[str, tuple[int, int, int]]:
        """RGB colour by class name, for the classes of the settings that have an `Evaluation`."""
        colours: dict[str, tuple[int, int, int]] = {}
        for evaluation in self.evaluations.values():
            colours |= evaluation.colours
        return colours


def read_run(workdir: AnyPath) -> Run:
    """Read the folder of an evaluated run.

    Raises:
      UserError: `config.json` or `results.json` is missing, or a file does not have the expected content.
    """
    check_access(workdir)
    if not workdir.is_dir():
        raise UserError(f"no run at {workdir}; give the --workdir of a training or evaluation")
    config = _read_json(workdir / "config.json", "give the folder of a run, where training writes this file")
    results = _read_json(workdir / "results.json", "evaluate the run first (--mode=evaluate)")
    if not results:
        raise UserError(f"{workdir / 'results.json'} holds no settings; evaluate the run again (--mode=evaluate)")
    cells = tuple(_cell(name, values, workdir / "results.json") for name, values in results.items())
    paths = {cell.name: workdir / "evaluation" / f"{cell.name}.npz" for cell in cells}
    return Run(
        path=workdir,
        name=str(config.get("name", workdir.name)),
        date=modified(workdir / "results.json").date(),
        config=flatten(config),
        cells=cells,
        evaluations={name: _read_evaluation(path) for name, path in paths.items() if path.exists()},
        metrics=_read_metrics(workdir / "metrics.jsonl"),
        styles=_read_styles(workdir / "evaluation" / "style_examples.npz"),
        features=_read_features(workdir / "evaluation" / "class_features.npz"),
        robustness=_read_shifts(workdir / "shifts.json", {cell.checkpoint_step for cell in cells}),
    )


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return a nested configuration as a flat mapping with dotted keys: {"train.steps": "100", …}."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return flat


def _read_json(path: AnyPath, remedy: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {remedy}") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); {remedy}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}, expected an object; {remedy}")
    return values


def _cell(name: str, values: Any, path: AnyPath) -> Cell:
    where = f"{path}: setting '{name}'"
    if not isinstance(values, dict):
        raise UserError(f"{where} is {values!r}, expected an object; evaluate the run again")
    version = values.get("schema_version", 1)  # entries older than the field have the fields of version 1
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{where} has the schema version {version}, this program reads {SCHEMA_VERSION}; update crossearth_jax or "
            "evaluate the run again (--mode=evaluate)"
        )
    score = _score(values, where)
    gap = _get(values, "gap", (list, str), where)
    published = values.get("published") or {}
    baselines = values.get("baselines") or {}
    return Cell(
        name=name,
        source=_get(values, "source", str, where),
        target=_get(values, "target", str, where),
        gap=tuple(gap) if isinstance(gap, list) else (gap,) if gap else (),
        cross_domain=_get(values, "cross_domain", bool, where),
        miou=score.miou,
        iou=score.iou,
        classes=tuple(_get(values, "classes", list, where)),
        accuracy=_optional(values.get("accuracy")),
        pixels=values.get("pixels"),
        checkpoint_step=_get(values, "checkpoint_step", int, where),
        protocol=str(values.get("protocol", "")),
        baselines={key: _score(value, f"{where}, baseline '{key}'") for key, value in baselines.items()},
        published=_optional(published.get("miou")),
        published_source=str(published.get("source", "")),
        style_distance=_optional(values.get("style_distance")),
        ece=_optional(values.get("ece")),
        ece_calibrated=_optional(values.get("ece_calibrated")),
        temperature=_optional(values.get("temperature")),
    )


def _score(values: Any, where: str) -> Score:
    iou = _get(values, "iou", dict, where)
    return Score(
        miou=_optional(_get(values, "miou", (int, float, type(None)), where)),
        iou={str(name): _optional(value) for name, value in iou.items()},
    )


def _get(values: Mapping[str, Any], key: str, kind: Any, where: str) -> Any:
    if key not in values:
        raise UserError(f"{where} has no '{key}'; evaluate the run again (--mode=evaluate)")
    if not isinstance(values[key], kind):
        raise UserError(
            f"{where} has {key} = {values[key]!r}, which has the wrong type; evaluate the run again (--mode=evaluate)"
        )
    return values[key]


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)


def _read_evaluation(path: AnyPath) -> Evaluation:
    arrays = _read_arrays(path, ("confusion", "classes", "palette", "images", "labels", "predictions"))
    count = len(arrays["classes"])
    if arrays["confusion"].shape != (count, count):
        raise UserError(
            f"{path}: confusion has shape {arrays['confusion'].shape}, expected {(count, count)} for {count} classes; "
            "evaluate the run again (--mode=evaluate)"
        )
    return Evaluation(
        confusion=arrays["confusion"],
        classes=tuple(str(name) for name in arrays["classes"]),
        palette=arrays["palette"],
        images=arrays["images"],
        labels=arrays["labels"],
        predictions=arrays["predictions"],
    )


def _read_styles(path: AnyPath) -> StyleExamples | None:
    if not path.exists():
        return None
    arrays = _read_arrays(path, ("images", "restyled"))
    return StyleExamples(images=arrays["images"], restyled=arrays["restyled"])


def _read_features(path: AnyPath) -> ClassFeatures | None:
    if not path.exists():
        return None
    arrays = _read_arrays(path, ("features", "classes", "domains", "class_names", "domain_names"))
    if len({len(arrays[name]) for name in ("features", "classes", "domains")}) > 1:
        raise UserError(f"{path}: its arrays have different lengths; evaluate the run again (--mode=evaluate)")
    return ClassFeatures(
        values=arrays["features"].astype(np.float32),
        classes=arrays["classes"].astype(np.int64),
        domains=arrays["domains"].astype(np.int64),
        class_names=tuple(map(str, arrays["class_names"])),
        domain_names=tuple(map(str, arrays["domain_names"])),
    )


def _read_shifts(path: AnyPath, steps: set[int]) -> Robustness | None:
    """Return the scores under shifts; None if there are none or they belong to another checkpoint than the results."""
    if not path.exists():
        return None
    remedy = "score the shifts again (--mode=evaluate --shifts)"
    stored = _read_json(path, remedy)
    version = stored.get("schema_version")
    if version != SHIFTS_VERSION:
        raise UserError(f"{path} has the schema version {version}, this program reads {SHIFTS_VERSION}; {remedy}")
    if {stored.get("checkpoint_step")} != steps:
        return None
    where = str(path)
    return Robustness(
        source=_get(stored, "source", str, where),
        clean=_score(_get(stored, "clean", dict, where), where),
        shifts={
            name: ShiftScores(
                parameter=_get(shift, "parameter", str, where),
                values={int(k): float(v["value"]) for k, v in _get(shift, "strengths", dict, where).items()},
                scores={int(k): _score(v, f"{where}, {name} {k}") for k, v in shift["strengths"].items()},
            )
            for name, shift in _get(stored, "shifts", dict, where).items()
        },
    )


def _read_arrays(path: AnyPath, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        # Open the file here, since np.load does not close a broken archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({error}); evaluate the run again (--mode=evaluate)") from None


def _read_metrics(path: AnyPath) -> dict[str, Series]:
    """Return the logged values by quantity, without nulls; an incomplete last line of a killed run is ignored."""
    if not path.exists():
        return {}
    points: dict[str, list[tuple[int, float]]] = {}
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            step = int(record.pop("step"))
        except (ValueError, KeyError, AttributeError):
            if number == len(lines):
                break
            raise UserError(f"{path}, line {number} is not a JSON object with a step; remove the line") from None
        for name, value in record.items():
            if name != "time" and isinstance(value, int | float):
                points.setdefault(name, []).append((step, float(value)))
    return {
        name: Series(steps=np.array([s for s, _ in pairs]), values=np.array([v for _, v in pairs]))
        for name, pairs in points.items()
    }
