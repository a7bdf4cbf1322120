"""`model.safetensors`: the only file of a run that inference reads.

It holds the parameters that evaluation uses, with their description: classes, colours, window, bands, ground
resolution. Training writes it together with every checkpoint that the selection (`evaluate.select`) would choose. For a
run without this file, from an older version, it is written once from the checkpoint.
"""

from __future__ import annotations

import dataclasses
import json

import jax
from absl import logging
from jax.experimental import multihost_utils

from crossearth_jax.benchmark.registry import source_domains
from crossearth_jax.config import Config, MeshConfig, UserError, from_config_dict
from crossearth_jax.runtime import parallel
from crossearth_jax.runtime.buckets import AnyPath
from crossearth_jax.training.start import restore
from crossearth_jax.training.state import Params
from crossearth_jax.training.styles import style_targets
from crossearth_jax.weights.native import MODEL_FILE, Description, read_description, save_native


def export_model(workdir: AnyPath, config: Config, params: Params, step: int) -> None:
    """Write `model.safetensors` of a run; all processes must call this together, and process 0 writes.

    Args:
      workdir: the run's folder.
      config: the run's configuration.
      params: all parameters as evaluation uses them. Those of the style network are left out, and those of the
        reconstruction head where there is a segmentation head.
      step: number of optimizer steps so far.

    Raises:
      UserError: the file cannot be written.
    """
    left_out = ("style/", "mim/") if config.model.head else ("style/",)
    arrays = {name: parallel.fetch(value) for name, value in params.items() if not name.startswith(left_out)}
    if jax.process_index() == 0:
        save_native(workdir / MODEL_FILE, arrays, describe_run(config, step))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"exported step {step}")


def describe_run(config: Config, step: int) -> Description:
    """Return the description of a run's parameters; for a run without labels it has no classes."""
    domains = source_domains(config.data.source, config.data.data_dir)
    bands, gsd = {domain.bands for domain in domains}, {domain.gsd for domain in domains}
    return Description(
        model=dataclasses.replace(config.model, mim=None) if config.model.head else config.model,
        class_names=domains[0].classes,
        palette=domains[0].palette,
        source=f"{config.name}, step {step}",
        window=config.evaluate.window,
        stride=config.evaluate.stride,
        bands=bands.pop() if len(bands) == 1 else (),  # several sources may differ
        gsd=gsd.pop() if len(gsd) == 1 else None,
        trained_on=config.data.source,
        style_targets=style_targets(config),
        step=step,
        selection=config.evaluate.select,
    )


def ensure_exported(workdir: AnyPath, selection: str | None = None) -> AnyPath:
    """Return the path of a run's `model.safetensors`; if needed, write it from a checkpoint first.

    This is needed for a run of an older version, which has no such file, and if the file was written for another
    `selection`.

    Args:
      workdir: the run's folder.
      selection: "last" or "best_on_source"; None: use the file as it is.

    Raises:
      UserError: the folder is not that of a run, or the checkpoint cannot be read.
    """
    path = workdir / MODEL_FILE
    if path.is_file() and selection in (None, read_description(path).selection):
        return path
    if not path.is_file() and not (workdir / "config.json").is_file():
        raise UserError(f"{workdir} holds neither {MODEL_FILE} nor config.json; expected the folder of a run")
    logging.info("writing %s from the run's checkpoints", path)
    config = read_run_config(workdir)
    if selection is not None:
        config = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, select=selection))
    # One device has room for the parameters of inference. The mesh of the training may not exist on this machine.
    mesh = parallel.make_mesh(MeshConfig(data=1), jax.local_devices()[:1])
    run = restore(config, workdir, mesh=mesh)
    export_model(workdir, config, run.params, int(run.state.step))
    return path


def read_run_config(workdir: AnyPath) -> Config:
    """Read the configuration in a run's folder.

    Raises:
      UserError: there is no `config.json`, or it is damaged.
    """
    path = workdir / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; expected the folder of a run") from None
    return from_config_dict(values)
