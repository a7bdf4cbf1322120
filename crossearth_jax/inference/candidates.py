"""Find the checkpoints of each training in a folder: folders of runs, published files and converted files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from crossearth_jax.benchmark import DOMAINS, TRAININGS, Training
from crossearth_jax.config import UserError
from crossearth_jax.inference.segmentor import Segmentor, load
from crossearth_jax.training.weights_file import ensure_exported
from crossearth_jax.weights.native import MODEL_FILE, read_description


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """One checkpoint of one training."""

    path: Path
    source: str  # domain, or domains joined by "+", on which it was trained
    kind: str  # "run", "published" or "converted"
    step: int | None  # optimizer steps of a run's exported model

    @property
    def label(self) -> str:
        """Its name in the table: that of the file or of the run's folder."""
        return self.path.resolve().name

    def fingerprint(self) -> str:
        """Return size and modification time of the weights file, which change with it, without reading gigabytes."""
        state = (self.path / MODEL_FILE if self.kind == "run" else self.path).stat()
        return f"{state.st_size} bytes of {state.st_mtime_ns}"

    def load(self) -> Segmentor:
        """Load the model.

        Raises:
          UserError: the file cannot be read, or does not have the classes of the source domain.
        """
        if self.kind == "run":
            return load(self.path)
        domain = DOMAINS[self.source]  # only sources of the benchmark have files that are found by name
        return load(self.path, num_classes=len(domain.classes), class_names=domain.classes, palette=domain.palette)


def find_candidates(folder: Path) -> dict[str, list[Candidate]]:
    """Return the checkpoints in `folder` by source domain: single files first, then runs.

    A file is recognised by its name: the published name or the name of the training, ending in `.pth` or
    `.safetensors`. A `.pth` file is ignored if the `.safetensors` file of the same name exists.

    Raises:
      UserError: the folder does not exist.
    """
    if not folder.is_dir():
        raise UserError(
            f"--checkpoints={folder} is not a folder; give a folder that holds runs, .safetensors files or .pth files"
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
    """Yield the runs in `folder`, or `folder` itself if it is a run; a run without a readable model is skipped."""
    for path in sorted({folder, *(entry for entry in folder.iterdir() if entry.is_dir())}):
        if not (path / MODEL_FILE).is_file() and not (path / "config.json").is_file():
            continue
        try:
            described = read_description(ensure_exported(path))
        except UserError as error:
            logging.warning("the run %s is skipped: %s", path, error)
            continue
        yield Candidate(path=path, source=described.trained_on, kind="run", step=described.step)
