"""Checkpoints: the training state and the configuration of the run, written by orbax.

A checkpoint holds digests of the frozen parameters instead of the parameters; restoring it with other frozen parameters
is refused. It does not hold the position in the data, which follows from the step.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from crossearth_jax.config import Config, UserError, from_config_dict, to_config_dict
from crossearth_jax.runtime import parallel
from crossearth_jax.runtime.buckets import AnyPath, any_path, move_folder, resolved
from crossearth_jax.training.state import TrainState

# Fields that a resumed run may change: lengths and intervals, devices and folders, and what only evaluation uses.
_FREE = ("train.steps", "train.log_every", "train.checkpoint_every", "train.keep_checkpoints", "train.dashboards",
         "train.nonfinite", "mesh.", "evaluate.", "data.data_dir", "data.domains_file", "data.prefetch", "data.workers",
         "data.timeout", "name")  # fmt: skip
SELECTIONS = ("last", "best_on_source")
_SCORE = "score"
_UNREADABLE = (OSError, ValueError, KeyError, TypeError)  # raised for JSON that is missing, truncated or malformed


@dataclasses.dataclass(frozen=True)
class RunIdentity:
    """The configuration and the frozen parameters that a checkpoint belongs to."""

    config: Config
    frozen_digest: str  # digest of all frozen parameters together; "" if there are none
    frozen: Mapping[str, str]  # name -> digest of each frozen parameter

    def as_json(self) -> dict[str, Any]:
        """Return the form that is stored in every checkpoint."""
        # The horizon as a number: if it is None, another number of steps is another schedule from the first step on.
        optimizer = dataclasses.replace(self.config.optimizer, horizon=self.config.horizon)
        return {
            "config": _as_json(dataclasses.replace(self.config, optimizer=optimizer)),
            "frozen_digest": self.frozen_digest,
            "frozen": dict(self.frozen),
        }


def check_folder(workdir: AnyPath) -> None:
    """Check that checkpoints can be kept in the folder of a run.

    Raises:
      UserError: it is in a bucket of S3, where orbax and TensorStore cannot keep them.
    """
    if not isinstance(workdir, Path) and not str(workdir).startswith("gs://"):
        raise UserError(
            f"no checkpoints can be kept in {workdir}, since orbax has no support for S3; expected a local folder or "
            "gs://BUCKET/…; train in a local folder and copy it (aws s3 sync), or mount the bucket (mount-s3)"
        )


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, directory: AnyPath, keep: int, identity: RunIdentity):
        """Set the folder; the first save creates it.

        Args:
          directory: folder of the checkpoints.
          keep: number of newest checkpoints to keep, in addition to the one with the best score.
          identity: what the checkpoints belong to.
        """
        self.identity = identity.as_json()
        self._directory = epath.Path(resolved(directory))
        self._keep = keep
        self._select = identity.config.evaluate.select
        self._best: float | None = None  # best score so far, including saves in progress; None: not read yet
        self._manager: ocp.CheckpointManager | None = None  # created by the first save, since it reads all scores

    @property
    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, newest first; a save that was interrupted is not included."""
        if not self._directory.exists():
            return []
        found = ocp.path.step.standard_name_format().find_all(self._directory)
        return sorted((int(checkpoint.step) for checkpoint in found), reverse=True)

    def ranked(self, select: str) -> list[int]:
        """Return the steps in order of preference: "last" (newest first) or "best_on_source" (best score first).

        Of equal scores the later step comes first. A checkpoint whose score cannot be read is left out.

        Raises:
          UserError: there is no such checkpoint.
        """
        if not self.steps:
            raise UserError(
                f"{self._directory.parent} holds no checkpoint; train first (--mode=train), or name the folder of a run"
            )
        if select == "last":
            return self.steps
        scores = self._scores()
        if not scores:
            raise UserError(
                f"no checkpoint in {self._directory} was scored on the source; train with "
                "evaluate.select=best_on_source, or evaluate with evaluate.select=last"
            )
        return sorted(scores, key=lambda step: (scores[step], step), reverse=True)

    def improves(self, score: float) -> bool:
        """Return whether no checkpoint so far has a higher score on the source, including those being written."""
        if self._best is None:
            self._best = max(self._scores().values(), default=-math.inf)
        return score >= self._best

    def _scores(self) -> dict[int, float]:
        """Return step -> score on the source, for the checkpoints that have one."""
        scores: dict[int, float] = {}
        for step in self.steps:
            try:
                score = self._stored_score(step)
            except _UNREADABLE as error:
                logging.warning("checkpoint %d is left out: its score cannot be read (%s)", step, _first_line(error))
                continue
            if score is not None:
                scores[step] = score
        return scores

    def save(self, state: TrainState, score: float | None = None) -> None:
        """Start saving a checkpoint; it is written in the background.

        Args:
          state: the state to save.
          score: on the source's validation split, larger is better; the checkpoint with the best score is kept.

        Raises:
          UserError: this checkpoint or the previous one could not be written, e.g. because the disk is full.
        """
        step = int(jax.device_get(state.step))
        if self._manager is None:
            self._manager = self._open()
        if step in self._manager.all_steps():
            return
        try:
            with jax.transfer_guard("allow"):  # orbax fetches the state by implicit transfers
                saved = self._manager.save(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardSave(state._asdict()),
                        meta=ocp.args.JsonSave(self.identity),
                    ),
                    metrics=None if score is None else {_SCORE: score},
                )
        except (OSError, ValueError, jax.errors.JaxRuntimeError) as error:
            raise self.write_error(f"checkpoint {step}", error) from error
        if not saved:
            raise UserError(f"checkpoint {step} was not written: {self._directory} already holds step {self.steps[0]}")
        if score is not None and self._best is not None:
            self._best = max(self._best, score)

    def wait(self) -> None:
        """Wait until the last save is on disk.

        Raises:
          UserError: it could not be written.
        """
        try:
            if self._manager is not None:
                self._manager.wait_until_finished()
        except (OSError, ValueError, jax.errors.JaxRuntimeError) as error:
            raise self.write_error("the last checkpoint", error) from error

    def close(self) -> None:
        """Wait for the last save and close the manager."""
        self.wait()
        if self._manager is not None:
            self._manager.close()

    def restore(self, shapes: TrainState, shardings: TrainState, steps: Sequence[int] | None = None) -> TrainState:
        """Restore the first of `steps` that can be read, with the given shardings.

        A damaged or incomplete checkpoint is skipped with a warning. All processes of a run must call this together;
        they restore the same checkpoint.

        Args:
          shapes: shapes of the state.
          shardings: shardings of the state.
          steps: in order of preference; by default all, newest first.

        Raises:
          UserError: none can be read, or a checkpoint belongs to another configuration or other frozen parameters.
        """
        target = jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
            shapes,
            shardings,
        )
        faults: dict[int, str] = {}
        for step in self.steps if steps is None else steps:
            state, fault = None, "another process cannot read it"
            try:
                state = self._read(step, target)
            except (UserError, jax.errors.JaxRuntimeError):
                raise
            except Exception as error:  # orbax raises various types for missing or truncated files
                fault = _first_line(error)
            if parallel.all_agree(state is not None):
                assert state is not None
                for bad, reason in faults.items():
                    logging.warning("checkpoint %d is damaged or incomplete (%s); step %d is used", bad, reason, step)
                logging.info("restored step %d from %s", step, self._directory)
                return state
            faults[step] = fault
        assert faults, "restore needs a checkpoint; ask `steps` first"
        raise UserError(
            f"no checkpoint in {self._directory} can be read ("
            + "; ".join(f"step {step}: {fault}" for step, fault in faults.items())
            + "), expected complete checkpoints; copy them again, or use another --workdir"
        )

    def set_aside(self, step: int) -> None:
        """Move damaged checkpoints to `damaged_checkpoints/`, so that new ones of the same steps can be saved.

        These are the checkpoints newer than `step`, which `restore` has skipped, and older ones whose score cannot be
        read. All processes of a run must call this together, before the first save.

        Args:
          step: the restored step.

        Raises:
          UserError: a checkpoint cannot be moved.
        """
        if jax.process_index() == 0:
            for found in self.steps:
                try:
                    self._stored_score(found)
                    whole = found <= step
                except _UNREADABLE:
                    whole = False
                if not whole:
                    self._move(found)
        multihost_utils.sync_global_devices("damaged checkpoints are set aside")

    def _move(self, step: int) -> None:
        folder = self._directory.with_name("damaged_checkpoints")
        names = itertools.chain([str(step)], (f"{step}-{number}" for number in itertools.count(2)))
        target = next(folder / name for name in names if not (folder / name).exists())
        try:
            move_folder(any_path(self._directory / str(step)), any_path(target))
        except OSError as error:
            raise UserError(
                f"damaged checkpoint {step} cannot be moved to {target} ({error.strerror}); move it away by hand"
            ) from None
        logging.warning("moved damaged checkpoint %d to %s", step, target)

    def _open(self) -> ocp.CheckpointManager:
        best = checkpoint_managers.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
        policy = checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(self._keep), best])
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=_score if self._select == "best_on_source" else None,
            enable_async_checkpointing=True,
        )
        return ocp.CheckpointManager(self._directory, options=options)

    def _read(self, step: int, target: TrainState) -> TrainState:
        """Read this process's part of a checkpoint, without waiting for other processes, since any of them can fail."""
        folder = self._directory / str(step)
        meta = ocp.JsonCheckpointHandler().restore(folder / "meta")
        self._check(step, meta)
        self._stored_score(step)
        args = ocp.args.StandardRestore(target._asdict())
        return TrainState(**ocp.StandardCheckpointHandler().restore(folder / "state", args=args))

    def _stored_score(self, step: int) -> float | None:
        """Return the score of a checkpoint; None if it has none. Raise one of `_UNREADABLE` if it is damaged."""
        folder = self._directory / str(step) / "metrics"
        if not folder.exists():
            return None
        return _score(ocp.JsonCheckpointHandler(filename="metrics").restore(folder))

    def _check(self, step: int, meta: Mapping[str, Any]) -> None:
        # A checkpoint of an earlier version lacks newer fields, whose defaults change nothing.
        changes = config_changes(_as_json(from_config_dict(meta["config"])), self.identity["config"])
        if step >= self.identity["config"]["train"]["steps"]:  # training is finished, so the schedule does not matter
            changes = [change for change in changes if not change.startswith("optimizer.horizon:")]
        if changes:
            raise UserError(
                f"{self._directory} holds a run with another configuration ({'; '.join(changes)}); "
                "use another --workdir, or the configuration it was started with"
            )
        if meta["frozen_digest"] != self.identity["frozen_digest"]:
            raise UserError(
                f"{self._directory} was trained with other frozen weights "
                f"({_frozen_changes(meta['frozen'], self.identity['frozen'])}); "
                "set train.init_from and style.weights to the files of that run"
            )

    def write_error(self, what: str, error: Exception) -> UserError:
        """Return the error for a file of the run that could not be written; it names the last complete checkpoint."""
        return UserError(
            f"{what} could not be written to {self._directory.parent} ({_first_line(error)}); the last complete "
            f"checkpoint is step {next(iter(self.steps), None)}; make room and run the same command to continue from it"
        )


def _score(metrics: Any) -> float:
    return float(metrics[_SCORE])


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return textwrap.shorten(lines[0], 200) if lines else type(error).__name__


def _frozen_changes(stored: Mapping[str, str], current: Mapping[str, str]) -> str:
    """Return the first three tensors that differ, as `name: digest -> digest`, and the number of the others."""
    names = [name for name in sorted(stored.keys() | current.keys()) if stored.get(name) != current.get(name)]
    shown = [f"{name}: {stored.get(name, 'absent')[:12]} -> {current.get(name, 'absent')[:12]}" for name in names[:3]]
    return "; ".join(shown) + (f"; and {len(names) - 3} more" if len(names) > 3 else "")


def _as_json(config: Config) -> dict[str, Any]:
    return json.loads(to_config_dict(config).to_json())


def config_changes(stored: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Return the differences that a resumed run must not have, as `key: stored -> current`."""
    old, new = flatten(stored), flatten(current)
    differ = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in differ if not key.startswith(_FREE)]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted name -> value of every field of nested mappings."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
