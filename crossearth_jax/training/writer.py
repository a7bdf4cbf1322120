"""Write a run's metrics to `metrics.jsonl`, which the report reads, as TensorBoard events, and to dashboards."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import math
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, SupportsFloat, runtime_checkable

from absl import logging
from etils import epath
from tensorboardX import SummaryWriter

from crossearth_jax.config import UserError
from crossearth_jax.runtime.atomic import replacing, write_json
from crossearth_jax.runtime.buckets import AnyPath, any_path, make_folder, resolved, upload
from crossearth_jax.training.checkpoint import flatten

FILE_NAME = "metrics.jsonl"
DASHBOARDS_FILE = "dashboards.json"  # dashboard -> id of the run there, under which a resumed run continues
PROJECT = "crossearth_jax"  # name of the project (W&B) or experiment (MLflow) that runs are listed under


@runtime_checkable
class Dashboard(Protocol):
    """A service that receives the metrics."""

    id: str  # of the run

    def write(self, step: int, numbers: Mapping[str, float], time: float) -> None:
        """Send the numbers of one step; `time` in seconds since 1970."""
        ...

    def close(self) -> None:
        """Mark the run as ended."""
        ...


class WandB:
    """Weights & Biases. `WANDB_MODE=offline` writes to the run's folder, to be sent by `wandb sync` later."""

    def __init__(self, workdir: AnyPath, config: Mapping[str, Any], run_id: str | None):
        wandb = importlib.import_module("wandb")
        folder = str(workdir) if isinstance(workdir, Path) else None  # W&B writes to local disks only
        self._run = wandb.init(
            project=PROJECT, name=workdir.name, dir=folder, id=run_id, resume="allow", config=dict(config)
        )
        self.id = self._run.id

    def write(self, step: int, numbers: Mapping[str, float], time: float) -> None:
        """Send the numbers; W&B ignores steps that it has already, as those that a resumed run repeats."""
        del time  # W&B records its own
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        """Send the rest and end the run."""
        self._run.finish()


class MLflow:
    """MLflow; the environment variable MLFLOW_TRACKING_URI names the server or folder."""

    def __init__(self, workdir: AnyPath, config: Mapping[str, Any], run_id: str | None):
        mlflow = importlib.import_module("mlflow")
        self._entities = importlib.import_module("mlflow.entities")
        self._client = mlflow.MlflowClient()
        if run_id is not None:
            self.id = run_id
            self._client.update_run(run_id, "RUNNING")
            return
        experiment = self._client.get_experiment_by_name(PROJECT)
        place = self._client.create_experiment(PROJECT) if experiment is None else experiment.experiment_id
        self.id = self._client.create_run(place, run_name=workdir.name).info.run_id
        parameters = [self._entities.Param(name, str(value)) for name, value in flatten(config).items()]
        for some in itertools.batched(parameters, 100):  # as many as one request may have
            self._client.log_batch(self.id, params=list(some))

    def write(self, step: int, numbers: Mapping[str, float], time: float) -> None:
        """Send the numbers of one step in one request."""
        milliseconds = int(time * 1000)
        metrics = [self._entities.Metric(name, number, milliseconds, step) for name, number in numbers.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def close(self) -> None:
        """End the run."""
        self._client.set_terminated(self.id)


_DASHBOARDS = {"mlflow": MLflow, "wandb": WandB}


class MetricsWriter:
    """Append one record per logged step; as a context manager it closes the files."""

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        restored_step: int = 0,
        *,
        images_per_step: int = 0,
        active: bool = True,
        dashboards: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
    ):
        """Open the files of `workdir`, continuing after `restored_step`.

        Later records are dropped, because the resumed run repeats these steps, and so is an incomplete last line. With
        step 0 all records are dropped.

        Args:
          workdir: the run's folder, created if missing.
          restored_step: step of the checkpoint that training continues from.
          images_per_step: if given, every record but the first also holds `images_per_second` since the previous one.
          active: False: all calls do nothing, for all but the first process of a run.
          dashboards: names of services that also receive the metrics, as in `TrainConfig.dashboards`.
          config: the configuration, which is shown there.

        Raises:
          UserError: a dashboard cannot be reached.
        """
        self._active = active
        if not active:
            return
        self._images_per_step = images_per_step
        self._previous: tuple[int, float] | None = None  # step and time of the last record
        self._workdir = any_path(workdir)
        make_folder(self._workdir)
        self._dashboards = _connect(self._workdir, dashboards, config or {}, restored_step)
        # Buckets cannot append: the files are written in a temporary folder and uploaded after every record.
        self._temporary = None if isinstance(self._workdir, Path) else tempfile.TemporaryDirectory()
        self._folder = Path(workdir if self._temporary is None else self._temporary.name)
        kept = _kept(self._workdir / FILE_NAME, restored_step)
        with replacing(self._folder / FILE_NAME) as temporary:
            temporary.write_text(kept, encoding="utf-8")
        self._file = (self._folder / FILE_NAME).open("a", encoding="utf-8")
        # Events of repeated steps stay in the old file. With `purge_step` TensorBoard hides them.
        self._events = SummaryWriter(str(self._folder), purge_step=restored_step + 1)

    def write(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Record scalars of one step.

        Args:
          step: the optimizer step they belong to.
          values: name -> number (Python, NumPy or a fetched device scalar). A value that is not finite is written as
            null, since JSON has no such numbers.

        Raises:
          UserError: the file cannot be written (full disk), or not be uploaded.
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
                f"cannot write {self._folder / FILE_NAME}: {error.strerror}; make room and run the same command again "
                "to continue from the last checkpoint"
            ) from None
        for name, number in numbers.items():
            self._events.add_scalar(name, number, step, walltime=now)
        self._upload()
        for name, dashboard in list(self._dashboards.items()):
            try:
                dashboard.write(step, numbers, now)
            except Exception as error:  # of the service or the network, which must not end a training
                logging.warning("%s receives no more metrics of this start: %s", name, error)
                del self._dashboards[name]

    def _upload(self) -> None:
        """Upload the files if the run's folder is in a bucket."""
        if isinstance(self._workdir, epath.Path):
            self._events.flush()
            for file in self._folder.iterdir():
                upload(file, self._workdir / file.name)

    def _speed(self, step: int, now: float) -> dict[str, float]:
        """Return the speed since the last record; {} for the first one, whose interval includes the compilation."""
        previous, self._previous = self._previous, (step, now)
        if previous is None or not self._images_per_step:
            return {}
        return {"images_per_second": self._images_per_step * (step - previous[0]) / max(now - previous[1], 1e-9)}

    def close(self) -> None:
        """Close the files and end the runs of the dashboards."""
        if not self._active:
            return
        # Every record is flushed when it is written. Only a line for which `write` has raised an error can fail here.
        with contextlib.suppress(OSError):
            self._file.close()
        self._events.close()
        if self._temporary is not None:  # its files are uploaded
            self._temporary.cleanup()
        for name, dashboard in self._dashboards.items():
            try:
                dashboard.close()
            except Exception as error:  # the run is complete in the files
                logging.warning("%s: the run could not be ended there: %s", name, error)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _connect(
    workdir: AnyPath, names: Sequence[str], config: Mapping[str, Any], restored_step: int
) -> dict[str, Dashboard]:
    """Start or continue the runs of the dashboards."""
    file = workdir / DASHBOARDS_FILE
    ids = json.loads(file.read_text("utf-8")) if restored_step and file.exists() else {}
    dashboards: dict[str, Dashboard] = {}
    for name in names:
        try:
            dashboards[name] = _DASHBOARDS[name](resolved(workdir), config, ids.get(name))
        except Exception as error:  # each package has its own errors for a missing login, server or network
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"{name} cannot record the run ({reason}); correct its settings, or leave it out of train.dashboards"
            ) from error
    if names:
        write_json(file, ids | {name: dashboard.id for name, dashboard in dashboards.items()})
    return dashboards


def _kept(path: AnyPath, last_step: int) -> str:
    """Return the records up to `last_step` and before the first malformed line; "" if there is no file."""
    kept: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else ():
        try:
            step = int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            break
        if step <= last_step:
            kept.append(line)
    return "".join(kept)
