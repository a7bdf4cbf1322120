"""Train and evaluate: `python -m crossearth_jax.main --config=configs/blue_marble.py --workdir=runs/blue_marble`."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.resources
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
from absl import flags, logging
from ml_collections import config_flags

from crossearth_jax.benchmark.domains_file import DomainsFile
from crossearth_jax.benchmark.registry import settings_from, settings_of
from crossearth_jax.config import Config, UserError, from_config_dict
from crossearth_jax.config_check import check_classes, check_config
from crossearth_jax.runtime import command, parallel, processes
from crossearth_jax.runtime.buckets import AnyPath, any_path, check_access, local_path

_CONFIG = config_flags.DEFINE_config_file(
    "config", None,
    "Experiment: a name such as blue_marble or a file such as configs/blue_marble.py, followed by `:argument` if it "
    "takes one.",
)  # fmt: skip
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, results, report.")
_MODE = flags.DEFINE_enum(
    "mode", "train_and_evaluate", ["train_and_evaluate", "train", "evaluate", "compile"], "Which parts to run."
)
_CHECKPOINTS = flags.DEFINE_string(
    "checkpoints", None,
    "With --mode=evaluate: a folder of runs, published .pth and converted .safetensors files. Every setting of the "
    "config for which it holds a checkpoint is scored and entered into the table.",
)  # fmt: skip
_SHIFTS = flags.DEFINE_bool(
    "shifts", False,
    "With --mode=evaluate: also score the source's own test images under appearance shifts (haze, light, season, "
    "sensor, compression, resolution, shadow).",
)  # fmt: skip
_PROFILE = flags.DEFINE_integer(
    "profile", None, "Trace this number of training steps with jax.profiler, into the run's folder `profile`.", 1
)
_TOPOLOGY = flags.DEFINE_list(
    "topology", [], "With --mode=compile: TPU slices and GPUs to compile for, such as v5e:2x4,v5p:4x8x8,h100:8."
)
_BATCH_PER_CHIP = flags.DEFINE_integer(
    "batch_per_chip", None, "With --mode=compile: images per chip, in place of the config's global batches.", 1
)
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Run on several hosts: connect to the other processes first.")
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "host:port of process 0, if JAX cannot detect it.")
_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes, if JAX cannot detect it.")
_PROCESS = flags.DEFINE_integer("process_id", None, "Index of this process from 0, if JAX cannot detect it.")


def main(argv: list[str]) -> int:
    """Parse the flags and run what `--mode` selects; return the exit code."""
    config, workdir = _parse(argv)
    if not _DISTRIBUTED.value:
        return _run(config, workdir)
    with processes.joined(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value):
        return _run(config, workdir)


def _run(config: Config, workdir: AnyPath) -> int:
    if _CHECKPOINTS.value is not None:
        checkpoints = local_path(_CHECKPOINTS.value, "--checkpoints", "copy the weights files to a local folder")
        from crossearth_jax.inference.benchmark_table import fill_table

        logging.info("table: %s", fill_table(config, workdir, checkpoints))
        return 0
    if _MODE.value == "compile":
        from crossearth_jax.aot.compile import compile_steps

        compile_steps(config, _TOPOLOGY.value, workdir, _BATCH_PER_CHIP.value)
        return 0
    # Imported after the flags are parsed, so that a wrong flag is reported without delay.
    from crossearth_jax.inference.evaluate import evaluate, is_evaluated, validate
    from crossearth_jax.inference.segmentor import load
    from crossearth_jax.prepare import prepare_domains, prepare_file
    from crossearth_jax.training.loop import train
    from crossearth_jax.training.stop import Stopped
    from crossearth_jax.training.weights_file import ensure_exported

    if config.data.domains_file is not None:
        with _first_process_first():
            file = prepare_file(config.data.domains_file, config.data.data_dir)
        check_classes(config)
        config = _with_rows_of(file, config)
    data = config.data
    targets = [setting.target for setting in settings_of(data.source, config.evaluate.settings, data.data_dir)]
    if _MODE.value == "train":
        targets = []
    # Process 0 prepares on a shared disk and the others find the result. With separate disks each process prepares.
    with _first_process_first():
        prepare_domains(dict.fromkeys([*data.source.split("+"), *targets]), data.data_dir)
    if _MODE.value != "evaluate":
        try:
            train(config, workdir, validate, _PROFILE.value or 0)
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            return stopped.exit_code
    if targets:
        # Imported only here: they need a second and more, which would delay the first training step.
        from crossearth_jax.analysis.additions import add_to_results
        from crossearth_jax.inference.calibration import calibrated
        from crossearth_jax.inference.robustness import score_shifts
        from crossearth_jax.report import write_report

        model_file = ensure_exported(workdir, config.evaluate.select)
        segmentor = load(model_file, window=config.evaluate.window, stride=config.evaluate.stride)
        if not (_SHIFTS.value and is_evaluated(config, workdir, segmentor)):
            segmentor = calibrated(config, model_file, segmentor)
            found = evaluate(config, workdir, segmentor)
            if jax.process_index() == 0:
                add_to_results(config, workdir, segmentor, found)
        if _SHIFTS.value:
            score_shifts(config, workdir, segmentor)
        if jax.process_index() == 0:
            logging.info("report: %s", write_report(workdir))
    return 0


def _with_rows_of(file: DomainsFile, config: Config) -> Config:
    """Return the configuration restricted to settings whose targets are in the file, unless it names settings itself.

    The data folder may also hold prepared domains that have been removed from the file since.
    """
    if config.evaluate.settings:
        return config
    keys = {domain.key for domain in file.find()}
    rows = settings_from(config.data.source, config.data.data_dir)
    names = tuple(row.name for row in rows if row.target in keys)
    return dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, settings=names))


@contextlib.contextmanager
def _first_process_first() -> Iterator[None]:
    """Run the block in process 0 first, then in the other processes."""
    if jax.process_index():
        parallel.wait_for_all("prepared")
    yield
    if not jax.process_index():
        parallel.wait_for_all("prepared")


def _parse(argv: list[str]) -> tuple[Config, AnyPath]:
    if {"-h", "--help"} & set(argv):
        own = flags.FLAGS.find_module_defining_flag("workdir")  # without absl's own flags, which are many
        print(__doc__, flags.FLAGS.module_help(own), sep="\n\n")
        sys.exit(0)
    arguments, given = [sys.argv[0], *with_config_files(argv)], sys.argv
    sys.argv = arguments  # ml_collections finds the fields of the configuration there; a notebook has its own arguments
    for field in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, field)  # defined by an earlier call in this process; a second definition is an error
    try:
        flags.FLAGS(arguments)
    except (flags.Error, OSError, AttributeError, TypeError, ValueError, KeyError) as error:
        raise UserError(str(error).strip().splitlines()[0]) from None
    finally:
        sys.argv = given
    compiling = _MODE.value == "compile"
    if _CONFIG.value is None or (_WORKDIR.value is None and not compiling):
        raise UserError("--config and --workdir are needed, e.g. --config=configs/blue_marble.py --workdir=runs/first")
    if _CHECKPOINTS.value is not None and _MODE.value != "evaluate":
        raise UserError(f"--checkpoints is for --mode=evaluate, found --mode={_MODE.value}; leave one of them out")
    if _SHIFTS.value and (_MODE.value != "evaluate" or _CHECKPOINTS.value is not None):
        other = "--checkpoints" if _CHECKPOINTS.value is not None else f"--mode={_MODE.value}"
        raise UserError(f"--shifts is for --mode=evaluate of one run, found {other}; leave one of them out")
    if compiling and not _TOPOLOGY.value:
        raise UserError("--mode=compile needs --topology, e.g. --topology=v5e:2x4 or --topology=v5e:16x16,v5p:4x8x8")
    config = from_config_dict(_CONFIG.value)
    check_config(config)
    workdir = any_path(_WORKDIR.value or f"runs/compile-{config.name}")
    check_access(workdir)
    return config, workdir


def with_config_files(argv: list[str]) -> list[str]:
    """Return the arguments with the file of the experiment that `--config` names.

    Raises:
      UserError: there is no such experiment or file.
    """
    arguments = list(argv)
    for at, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", "-config"):
            continue
        if not equals and at + 1 < len(arguments):  # the value is the next argument
            arguments[at + 1] = _config_file(arguments[at + 1])
        elif equals:
            arguments[at] = f"{flag}={_config_file(value)}"
    return arguments


def _config_file(value: str) -> str:
    """Return `file:argument` for `file:argument` or `name:argument`."""
    name, colon, argument = value.partition(":")
    if Path(name).is_file():
        return value
    folder = importlib.resources.files("crossearth_configs")
    known = sorted(entry.name[:-3] for entry in folder.iterdir() if entry.name.endswith(".py") and entry.name[0] != "_")
    if name not in known:
        raise UserError(f"--config={name}: no such file or experiment; expected a file or one of {', '.join(known)}")
    return f"{folder / name}.py{colon}{argument}"


if __name__ == "__main__":
    command.run(main)
