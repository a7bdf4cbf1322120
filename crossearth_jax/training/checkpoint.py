"""Checkpoints: the trainable state and what the run was, written by orbax.

Frozen parameters are not in them: a checkpoint names their digests, and restoring beside other ones is refused. Nor
is the position in the data, which follows from the step.
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

from crossearth_jax.config import Config, UserError, to_config_dict
from crossearth_jax.runtime import parallel
from crossearth_jax.training.state import TrainState

# What a resumed run may change: how long and how often, where, and what is only read afterwards.
_FREE = ("train.steps", "train.log_every", "train.checkpoint_every", "train.keep_checkpoints", "mesh.", "evaluate.",
         "data.data_dir", "data.domains_file", "data.prefetch", "data.workers", "data.timeout", "train.nonfinite",
         "name")  # fmt: skip
SELECTIONS = ("last", "best_on_source")
_SCORE = "score"
_UNREADABLE = (OSError, ValueError, KeyError, TypeError)  # of JSON that is missing, cut short or of another form


@dataclasses.dataclass(frozen=True)
class RunIdentity:
    """What a checkpoint belongs to."""

    config: Config
    frozen_digest: str  # of the frozen parameters; "" when there are none
    frozen: Mapping[str, str]  # digest of each of them

    def as_json(self) -> dict[str, Any]:
        """The form that is stored in every checkpoint."""
        # The horizon in numbers: where it follows the steps, more steps are another schedule from the first one on.
        optimizer = dataclasses.replace(self.config.optimizer, horizon=self.config.horizon)
        config = dataclasses.replace(self.config, optimizer=optimizer)
        return {
            "config": json.loads(to_config_dict(config).to_json()),
            "frozen_digest": self.frozen_digest,
            "frozen": dict(self.frozen),
        }


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, directory: Path, keep: int, identity: RunIdentity):
        """Names the folder; the first save makes it.

        Args:
          keep: newest checkpoints that stay, beside the one with the best score.
        """
        self.identity = identity.as_json()
        self._directory = epath.Path(directory.absolute())
        self._keep = keep
        self._select = identity.config.evaluate.select
        self._best: float | None = None  # best score so far, those of writes under way included; None: not yet read
        self._manager: ocp.CheckpointManager | None = None  # opened by the first save: it reads every score on the way

    @property
    def steps(self) -> list[int]:
        """Every step that was saved to its end, newest first; a save that a crash cut off is not among them."""
        if not self._directory.exists():
            return []
        found = ocp.path.step.standard_name_format().find_all(self._directory)
        return sorted((int(checkpoint.step) for checkpoint in found), reverse=True)

    def ranked(self, select: str) -> list[int]:
        """The steps in the order in which they are to be scored: "last" (newest first) or "best_on_source".

        Of equal scores the later step comes first; a checkpoint whose score cannot be read is left out.

        Raises:
          UserError: there is none.
        """
        if not self.steps:
            raise UserError(
                f"{self._directory.parent} holds no checkpoint; train first (--mode=train), "
                "or name the run's own folder"
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
        """Whether no checkpoint so far was scored higher on the source; those still being written count."""
        if self._best is None:
            self._best = max(self._scores().values(), default=-math.inf)
        return score >= self._best

    def _scores(self) -> dict[int, float]:
        """Scores on the source by step, of the checkpoints that have one."""
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
        """Starts saving; the write goes on while training does.

        Args:
          score: on the source's validation split, larger is better; the checkpoint with the best one is kept.

        Raises:
          UserError: it (or the save before it) could not be written, say on a full disk.
        """
        step = int(jax.device_get(state.step))
        if self._manager is None:
            self._manager = self._open()
        if step in self._manager.all_steps():
            return
        try:
            with jax.transfer_guard("allow"):  # orbax fetches the state in its own way
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
        """Waits until the last save is on disk."""
        try:
            if self._manager is not None:
                self._manager.wait_until_finished()
        except (OSError, ValueError, jax.errors.JaxRuntimeError) as error:
            raise self.write_error("the last checkpoint", error) from error

    def close(self) -> None:
        """Waits and lets go of the folder."""
        self.wait()
        if self._manager is not None:
            self._manager.close()

    def restore(self, shapes: TrainState, shardings: TrainState, steps: Sequence[int] | None = None) -> TrainState:
        """Reads the first of `steps` that can be read, onto the given shardings.

        A checkpoint that is damaged or was copied in part is passed over with a warning. All processes of a run take
        part and use the same one.

        Args:
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
            except Exception as error:  # orbax raises all kinds where a file is missing or cut short, also this one
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
            + "); expected whole copies: copy them again, or train into another --workdir"
        )

    def set_aside(self, step: int) -> None:
        """Moves checkpoints that cannot be read to `damaged_checkpoints/`, so that new ones can take their place.

        Those are the ones newer than `step`, which `restore` has passed over, and older ones whose score is damaged.
        All processes of a run call it together, before the first save.

        Raises:
          UserError: they cannot be moved.
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
            folder.mkdir(exist_ok=True)
            (self._directory / str(step)).rename(target)
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
        """Reads this process's part of a checkpoint. Nothing here waits for another process, so that each may fail."""
        folder = self._directory / str(step)
        meta = ocp.JsonCheckpointHandler().restore(folder / "meta")
        self._check(step, meta)
        self._stored_score(step)
        args = ocp.args.StandardRestore(target._asdict())
        return TrainState(**ocp.StandardCheckpointHandler().restore(folder / "state", args=args))

    def _stored_score(self, step: int) -> float | None:
        """The score that a checkpoint was saved with; None if it has none. Raises one of `_UNREADABLE` otherwise."""
        folder = self._directory / str(step) / "metrics"
        if not folder.exists():
            return None
        return _score(ocp.JsonCheckpointHandler(filename="metrics").restore(folder))

    def _check(self, step: int, meta: Mapping[str, Any]) -> None:
        changes = config_changes(meta["config"], self.identity["config"])
        if step >= self.identity["config"]["train"]["steps"]:  # nothing more is learnt, so the schedule is over
            changes = [change for change in changes if not change.startswith("optimizer.horizon:")]
        if changes:
            raise UserError(
                f"{self._directory} holds a run with another configuration ({'; '.join(changes)}); "
                "use another --workdir, or the configuration it was started with"
            )
        if meta["frozen_digest"] != self.identity["frozen_digest"]:
            raise UserError(
                f"{self._directory} was trained beside other frozen weights "
                f"({_frozen_changes(meta['frozen'], self.identity['frozen'])}); "
                "point train.init_from and style.weights at the files it started from"
            )

    def write_error(self, what: str, error: Exception) -> UserError:
        """What to tell of a file of the run that could not be written: the training so far is not lost."""
        return UserError(
            f"{what} could not be written to {self._directory.parent} ({_first_line(error)}); the last complete "
            f"checkpoint is step {next(iter(self.steps), None)}: make room and run the same command to continue from it"
        )


def _score(metrics: Any) -> float:
    return float(metrics[_SCORE])


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return textwrap.shorten(lines[0], 200) if lines else type(error).__name__


def _frozen_changes(stored: Mapping[str, str], current: Mapping[str, str]) -> str:
    """The tensors that differ, as `name: digest -> digest`; of many, the first."""
    names = [name for name in sorted(stored.keys() | current.keys()) if stored.get(name) != current.get(name)]
    shown = [f"{name}: {stored.get(name, 'absent')[:12]} -> {current.get(name, 'absent')[:12]}" for name in names[:3]]
    return "; ".join(shown) + (f"; and {len(names) - 3} more" if len(names) > 3 else "")


def config_changes(stored: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Differences of two configurations that a resumed run must not have, as `key: stored -> current`."""
    old, new = _flatten(stored), _flatten(current)
    differ = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in differ if not key.startswith(_FREE)]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
