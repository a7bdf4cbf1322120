"""The checkpoints that a folder holds for each training: folders of runs, published files, converted files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from crossearth_jax.benchmark import DOMAINS, TRAININGS, Training
from crossearth_jax.config import UserError
from crossearth_jax.inference.segmentor import Segmentor, load
from crossearth_jax.training.export import ensure_exported
from crossearth_jax.weights.native import MODEL_FILE, read_description


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """One checkpoint of one training."""

    path: Path
    source: str  # what it was trained on
    kind: str  # "run", "published" or "converted"
    step: int | None  # of a run's newest checkpoint

    @property
    def label(self) -> str:
        """How the table calls it."""
        return self.path.resolve().name

    def fingerprint(self) -> str:
        """Changes when the checkpoint does, without reading gigabytes."""
        state = (self.path / MODEL_FILE if self.kind == "run" else self.path).stat()
        return f"{state.st_size} bytes of {state.st_mtime_ns}"

    def load(self) -> Segmentor:
        """The model.

        Raises:
          UserError: it cannot be read, or does not have the classes of its source.
        """
        if self.kind == "run":
            return load(self.path)
        domain = DOMAINS[self.source]  # published files are the benchmark's
        return load(self.path, num_classes=len(domain.classes), class_names=domain.classes, palette=domain.palette)


def find_candidates(folder: Path) -> dict[str, list[Candidate]]:
    """Source domain -> its checkpoints in `folder`; published files first, then converted ones, then runs.

    Files are known by name: the published one, the same with `.safetensors`, or the training's name with either
    ending. A converted copy of a published file takes its place.

    Raises:
      UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(
            f"--checkpoints={folder} is no folder; expected one that holds runs, .safetensors or .pth files"
        )
    found: dict[str, list[Candidate]] = {}
    for training in TRAININGS.values():
        for path in _files(folder, training):
            kind = "converted" if path.suffix == ".safetensors" else "published"
            found.setdefault(training.source, []).append(
                Candidate(path=path, source=training.source, kind=kind, step=None)
            )
    for run in _runs(folder):
        found.setdefault(run.source, []).append(run)
    return found


def _files(folder: Path, training: Training) -> Iterator[Path]:
    for name in filter(None, (training.weights, f"{training.name}.pth")):
        copies = (folder / name, (folder / name).with_suffix(".safetensors"))
        existing = [path for path in copies if path.is_file()]
        yield from existing[-1:]


def _runs(folder: Path) -> Iterator[Candidate]:
    """Runs in `folder`, or `folder` itself; those that have left no model yet are left out."""
    for path in sorted({folder, *(entry for entry in folder.iterdir() if entry.is_dir())}):
        if not (path / MODEL_FILE).is_file() and not (path / "config.json").is_file():
            continue
        try:
            described = read_description(ensure_exported(path))
        except UserError as error:
            logging.warning("the run %s is left out: %s", path, error)
            continue
        yield Candidate(path=path, source=described.trained_on, kind="run", step=described.step)
