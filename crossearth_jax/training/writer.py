"""Writes a run's metrics twice: `metrics.jsonl` for programs and the report, TensorBoard events for eyes."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import SupportsFloat

from tensorboardX import SummaryWriter

from crossearth_jax.config import UserError

FILE_NAME = "metrics.jsonl"


class MetricsWriter:
    """Appends one record per logged step; the context manager closes the files."""

    def __init__(
        self, workdir: str | os.PathLike[str], restored_step: int = 0, *, images_per_step: int = 0, active: bool = True
    ):
        """Opens the files of `workdir`, continuing after `restored_step`.

        Records past that step belong to a stretch that the resumed run repeats; they are dropped, as is a last
        line cut short by a kill. Step 0 starts afresh.

        Args:
          workdir: the run's folder, made if missing.
          restored_step: step of the checkpoint that training continues from.
          images_per_step: if given, every record but the first also holds `images_per_second` since the one before.
          active: False makes every call a no-op, for all but the first process of a run.
        """
        self._active = active
        if not active:
            return
        self._images_per_step = images_per_step
        self._previous: tuple[int, float] | None = None  # step and time of the last record
        self._path = Path(workdir) / FILE_NAME
        self._path.parent.mkdir(parents=True, exist_ok=True)
        _truncate(self._path, restored_step)
        self._file = self._path.open("a", encoding="utf-8")
        # Events of the repeated stretch stay in their old file; the purge mark makes TensorBoard hide them.
        self._events = SummaryWriter(str(workdir), purge_step=restored_step + 1)

    def write(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Records scalars of one step.

        Args:
          step: the optimizer step they belong to.
          values: name -> number (Python, numpy or a fetched device scalar). One that is not finite becomes
            null in the JSON, which has no word for it.

        Raises:
          UserError: the file cannot be written (full disk).
        """
        if not self._active:
            return
        now = time.time()
        numbers = {name: float(value) for name, value in values.items()} | self._speed(step, now)
        record = {"step": step, "time": round(now, 3)} | {
            name: number if math.isfinite(number) else None for name, number in numbers.items()
        }
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"cannot write {self._path}: {error.strerror}; make room and start the same command again, "
                "it continues from the last checkpoint"
            ) from None
        for name, number in numbers.items():
            self._events.add_scalar(name, number, step, walltime=now)

    def _speed(self, step: int, now: float) -> dict[str, float]:
        """The first interval has no speed: it would be that of the compiler."""
        previous, self._previous = self._previous, (step, now)
        if previous is None or not self._images_per_step:
            return {}
        return {"images_per_second": self._images_per_step * (step - previous[0]) / max(now - previous[1], 1e-9)}

    def close(self) -> None:
        """Closes both files."""
        if not self._active:
            return
        # Every record is flushed when written; what can fail here is a line `write` has already complained about.
        with contextlib.suppress(OSError):
            self._file.close()
        self._events.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _truncate(path: Path, last_step: int) -> None:
    """Keeps the records up to `last_step` or the first broken line; the file is replaced as a whole or not at all."""
    if not path.exists():
        return
    kept: list[str] = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                step = int(json.loads(line)["step"])
            except (ValueError, KeyError, TypeError):
                break
            if step <= last_step:
                kept.append(line)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)
