"""Write a run's metrics to `metrics.jsonl`, which the report reads, and as TensorBoard events."""

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
    """Append one record per logged step; as a context manager it closes the files."""

    def __init__(
        self, workdir: str | os.PathLike[str], restored_step: int = 0, *, images_per_step: int = 0, active: bool = True
    ):
        """Open the files of `workdir`, continuing after `restored_step`.

        Later records are dropped, because the resumed run repeats these steps, and so is an incomplete last line. With
        step 0 all records are dropped.

        Args:
          workdir: the run's folder, created if missing.
          restored_step: step of the checkpoint that training continues from.
          images_per_step: if given, every record but the first also holds `images_per_second` since the previous one.
          active: False: all calls do nothing, for all but the first process of a run.
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
        # Events of repeated steps stay in the old file. With `purge_step` TensorBoard hides them.
        self._events = SummaryWriter(str(workdir), purge_step=restored_step + 1)

    def write(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Record scalars of one step.

        Args:
          step: the optimizer step they belong to.
          values: name -> number (Python, NumPy or a fetched device scalar). A value that is not finite is written as
            null, since JSON has no such numbers.

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
                f"cannot write {self._path}: {error.strerror}; make room and run the same command again to "
                "continue from the last checkpoint"
            ) from None
        for name, number in numbers.items():
            self._events.add_scalar(name, number, step, walltime=now)

    def _speed(self, step: int, now: float) -> dict[str, float]:
        """Return the speed since the last record; {} for the first one, whose interval includes the compilation."""
        previous, self._previous = self._previous, (step, now)
        if previous is None or not self._images_per_step:
            return {}
        return {"images_per_second": self._images_per_step * (step - previous[0]) / max(now - previous[1], 1e-9)}

    def close(self) -> None:
        """Close both files."""
        if not self._active:
            return
        # Every record is flushed when it is written. Only a line for which `write` has raised an error can fail here.
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
    """Keep the records up to `last_step` and before the first malformed line; the file is replaced atomically."""
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
