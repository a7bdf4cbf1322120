"""Checkpoints: the trainable state and what the run was, written by orbax.

Frozen parameters are not in them: a checkpoint names their digests, and restoring beside other ones is refused. Nor
is the position in the data, which follows from the step.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from crossearth_jax.config import Config, UserError, to_config_dict
from crossearth_jax.training.state import TrainState

# What a resumed run may change: how long and how often, where, and what is only read afterwards.
_FREE = ("train.steps", "train.log_every", "train.checkpoint_every", "train.keep_checkpoints", "mesh.", "evaluate.",
         "data.data_dir", "data.prefetch", "data.workers", "data.timeout", "train.nonfinite", "name")  # fmt: skip
SELECTIONS = ("last", "best_on_source")
_SCORE = "score"


@dataclasses.dataclass(frozen=True)
class RunIdentity:
    """What a checkpoint belongs to."""

    config: Config
    frozen_digest: str  # of the frozen parameters; "" when there are none
    frozen: Mapping[str, str]  # digest of each of them

    def as_json(self) -> dict[str, Any]:
        """The form that is stored in every checkpoint."""
        return {
            "config": json.loads(to_config_dict(self.config).to_json()),
            "frozen_digest": self.frozen_digest,
            "frozen": dict(self.frozen),
        }


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, directory: Path, keep: int, identity: RunIdentity):
        """Opens (or makes) the folder; a save that was cut off by a crash is ignored.

        Args:
          keep: newest checkpoints that stay, beside the one with the best score.
        """
        self.identity = identity.as_json()
        self._directory = directory
        best = checkpoint_managers.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(keep), best]),
            best_fn=_score if identity.config.evaluate.select == "best_on_source" else None,
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    @property
    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """Every complete step, oldest first."""
        return sorted(self._manager.all_steps())

    def selected(self, select: str) -> int:
        """The step to score: the "last", or the "best_on_source" (the later of equals).

        Raises:
          UserError: there is none.
        """
        if self.latest is None:
            raise UserError(
                f"{self._directory.parent} holds no checkpoint; train first (--mode=train), "
                "or name the run's own folder"
            )
        if select == "last":
            return self.latest
        scores = {step: self._manager.metrics(step) for step in self.steps}
        scored = [(_score(values), step) for step, values in scores.items() if values]
        if not scored:
            raise UserError(
                f"no checkpoint in {self._directory} was scored on the source; train with "
                "evaluate.select=best_on_source, or evaluate with evaluate.select=last"
            )
        return max(scored)[1]

    def save(self, state: TrainState, score: float | None = None) -> None:
        """Starts saving; the write goes on while training does.

        Args:
          score: on the source's validation split, larger is better; the checkpoint with the best one is kept.

        Raises:
          UserError: it (or the save before it) could not be written, say on a full disk.
        """
        step = int(jax.device_get(state.step))
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
            raise self._write_error(step, error) from error
        if not saved:
            raise UserError(f"checkpoint {step} was not written: {self._directory} already holds step {self.latest}")

    def wait(self) -> None:
        """Waits until the last save is on disk."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, jax.errors.JaxRuntimeError) as error:
            raise self._write_error(None, error) from error

    def close(self) -> None:
        """Waits and lets go of the folder."""
        self.wait()
        self._manager.close()

    def restore(self, shapes: TrainState, shardings: TrainState, step: int | None = None) -> TrainState:
        """Reads a checkpoint, by default the newest, onto the given shardings.

        Raises:
          UserError: the checkpoint belongs to another configuration or other frozen parameters.
        """
        step = self.latest if step is None else step
        assert step is not None, "restore needs a checkpoint; ask `latest` first"
        self._check(step)
        target = jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
            shapes,
            shardings,
        )
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target._asdict()))
        try:
            restored = self._manager.restore(step, args=args)
        except (ValueError, FileNotFoundError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"checkpoint {step} in {self._directory} cannot be read: {reason}") from error
        logging.info("restored step %d from %s", step, self._directory)
        return TrainState(**restored["state"])

    def _check(self, step: int) -> None:
        meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        changes = config_changes(meta["config"], self.identity["config"])
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

    def _write_error(self, step: int | None, error: Exception) -> UserError:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        what = "the last checkpoint" if step is None else f"checkpoint {step}"
        return UserError(
            f"{what} could not be written to {self._directory} ({reason}); the last complete one is step "
            f"{self.latest}: make room and run the same command to continue from it"
        )


def _score(metrics: Any) -> float:
    return float(metrics[_SCORE])


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
