"""Checkpoints: the trainable state, the data iterator's position and what the run was, written by orbax.

Frozen parameters are not in them: a checkpoint names their digest, and restoring beside other ones is refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from absl import logging

from crossearth_jax.config import Config, UserError, to_config_dict
from crossearth_jax.training.state import TrainState

# What a resumed run may change: how long and how often, where, and what is only read afterwards.
_FREE = ("train.steps", "train.log_every", "train.checkpoint_every", "train.keep_checkpoints", "mesh.", "evaluate.",
         "data.data_dir", "data.prefetch", "train.nonfinite", "name")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RunIdentity:
    """What a checkpoint belongs to."""

    config: Config
    frozen_digest: str  # of the frozen parameters; "" when there are none

    def as_json(self) -> dict[str, Any]:
        """The form that is stored in every checkpoint."""
        return {
            "config": json.loads(to_config_dict(self.config).to_json()),
            "frozen_digest": self.frozen_digest,
        }


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, directory: Path, keep: int, identity: RunIdentity):
        """Opens (or makes) the folder; a save that was cut off by a crash is ignored."""
        self.identity = identity.as_json()
        self._directory = directory
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    @property
    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, iterator: grain.DatasetIterator) -> None:
        """Starts saving; the write goes on while training does.

        Raises:
          UserError: it (or the save before it) could not be written, say on a full disk.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        try:
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state._asdict()),
                    meta=ocp.args.JsonSave(self.identity),
                    data=grain.checkpoint.CheckpointSave(iterator),  # pyright: ignore[reportCallIssue]
                ),
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

    def restore(
        self, shapes: TrainState, shardings: TrainState, iterator: grain.DatasetIterator | None = None
    ) -> TrainState:
        """Reads the newest checkpoint onto the given shardings and sets the iterator to its position.

        Raises:
          UserError: the checkpoint belongs to another configuration or other frozen parameters.
        """
        step = self.latest
        assert step is not None, "restore needs a checkpoint; ask `latest` first"
        self._check(step)
        target = jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
            shapes,
            shardings,
        )
        args: dict[str, Any] = {"state": ocp.args.StandardRestore(target._asdict())}
        if iterator is not None:
            args["data"] = grain.checkpoint.CheckpointRestore(iterator)  # pyright: ignore[reportCallIssue]
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**args))
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
                f"{self._directory} was trained beside frozen weights {meta['frozen_digest'][:12] or 'none'}, found "
                f"{self.identity['frozen_digest'][:12] or 'none'}; point train.init_from at the file it started from"
            )

    def _write_error(self, step: int | None, error: Exception) -> UserError:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        what = "the last checkpoint" if step is None else f"checkpoint {step}"
        return UserError(
            f"{what} could not be written to {self._directory} ({reason}); the last complete one is step "
            f"{self.latest}: make room and run the same command to continue from it"
        )


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
