"""The command `crossearth`: all commands of this package under one name.

`crossearth TASK …` (or `python -m crossearth_jax TASK …`) does the same as a command `python -m crossearth_jax.NAME …`.
`crossearth TASK --help` shows the options of a task.
"""

from __future__ import annotations

import importlib
from typing import NamedTuple

from crossearth_jax.config import UserError
from crossearth_jax.runtime import command


class Task(NamedTuple):
    """A sub-command."""

    module: str  # of this package; its `main` is called
    summary: str  # what it does, for the list of sub-commands
    arguments: tuple[str, ...] = ()  # added after those of the user


TASKS = {
    "run": Task("main", "train, evaluate all targets, write the report"),
    "train": Task("main", "train only", ("--mode=train",)),
    "evaluate": Task("main", "evaluate a trained run, or fill the benchmark table", ("--mode=evaluate",)),
    "compile": Task("main", "compile training and evaluation for TPUs and GPUs", ("--mode=compile",)),
    "prepare": Task("prepare", "prepare a dataset, or your own images and labels"),
    "predict": Task("predict", "map a georeferenced scene"),
    "report": Task("report", "write the report of a run, or compare runs"),
    "convert": Task("convert", "convert weights files"),
    "estimate-style": Task("estimate_style", "estimate style statistics of images"),
    "export": Task("export", "export a model to ONNX or StableHLO"),
    "push": Task("push", "publish a run on the Hugging Face hub"),
    "replay": Task("replay", "repeat a training step that was not finite"),
}


def run() -> None:
    """Run the sub-command that the first argument names, and exit with its code."""
    command.run(main)


def main(argv: list[str]) -> int | None:
    """Run the sub-command `argv[0]`; return its exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, TASKS))
        print(__doc__, *(f"  {name:<{width}}  {task.summary}" for name, task in TASKS.items()), sep="\n")
        return 0 if argv else 2
    name, *arguments = argv
    if name not in TASKS:
        raise UserError(f"crossearth {name} is unknown; expected one of {', '.join(TASKS)}")
    task = TASKS[name]
    return importlib.import_module(f"crossearth_jax.{task.module}").main([*arguments, *task.arguments])


if __name__ == "__main__":
    run()
