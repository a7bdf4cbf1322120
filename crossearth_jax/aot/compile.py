"""Compile the training and evaluation steps for TPUs and GPUs that are not available; report memory, FLOP, collectives.

`python -m crossearth_jax.main --config=… --mode=compile --topology=v5e:2x4,v5e:16x16,h100:8 [--batch_per_chip=2]`
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh

from crossearth_jax.aot import chips, collectives, hlo
from crossearth_jax.aot.compile_table import compile_table, step_line
from crossearth_jax.aot.origins import NOTHING, Origin, shared_sizes
from crossearth_jax.benchmark.registry import source_domains
from crossearth_jax.config import Config, UserError
from crossearth_jax.inference.segmentor import jit_window_scores
from crossearth_jax.inputs.loader import largest_size
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.runtime import parallel
from crossearth_jax.runtime.atomic import replacing, write_json
from crossearth_jax.runtime.buckets import AnyPath
from crossearth_jax.training.measure import measured
from crossearth_jax.training.program import build_program


def compile_steps(
    config: Config, topologies: Sequence[str], workdir: AnyPath, batch_per_chip: int | None = None
) -> list[dict[str, Any]]:
    """Compile the training and the evaluation step for each topology; write `compile.json` and `compile.md`.

    Args:
      config: the experiment; its mesh must fit every topology.
      topologies: names such as `v5e:16x16`, `v5e:16x16:2` (two slices) or `h100:8`.
      workdir: folder of the results.
      batch_per_chip: images per chip; None: the global batch sizes of the config.

    Returns:
      One record per topology and step, as in `compile.json`.

    Raises:
      UserError: a topology is unknown, the compiler is missing, a step does not compile or does not fit into memory, or
        a collective is not explained by the shardings. The results of compiled steps are written before the error.
    """
    config = measured(config)
    slices = {topology: chips.slice_devices(topology) for topology in topologies}
    records: list[dict[str, Any]] = []
    for topology, devices in slices.items():
        mesh = parallel.make_mesh(config.mesh, devices)
        scaled = config
        if batch_per_chip is not None:
            size = batch_per_chip * mesh.size
            scaled = dataclasses.replace(
                config,
                data=dataclasses.replace(config.data, batch_size=size),
                evaluate=dataclasses.replace(config.evaluate, batch_size=size),
            )
        for step, build in (("train", trace_training), ("evaluate", trace_evaluation)):
            record = _compile(scaled, mesh, topology, step, build)
            print(step_line(record), flush=True)
            records.append(record)
            write_json(workdir / "compile.json", records)
            with replacing(workdir / "compile.md") as temporary:
                temporary.write_text(compile_table(records), encoding="utf-8")
    _refuse_surprises(records)
    return records


class Traced(NamedTuple):
    """A traced step and what is needed to explain its sums over the batch."""

    step: Any  # result of `jax.jit(…).trace(…)`
    trainable: list[str]  # names of the parameters with a gradient
    shared: set[int]  # numbers of elements of values computed from these parameters alone


def trace_training(config: Config, mesh: Mesh) -> Traced:
    """Trace the training step for `mesh`."""
    program = build_program(config, mesh)
    side = largest_size(source_domains(config.data.source, config.data.data_dir), config.data.window)
    state = _placed(program.state, program.state_shardings)
    frozen = _placed(program.frozen, program.frozen_shardings)
    arrays = {
        "image": ((*side, 3), jnp.uint8),
        "label": (side, jnp.uint8),
        "size": ((2,), jnp.int32),
        "index": ((), jnp.int32),
    }
    split, count = parallel.batch_sharding(mesh), config.data.batch_size
    batch = {
        name: jax.ShapeDtypeStruct((count, *shape), dtype, sharding=split) for name, (shape, dtype) in arrays.items()
    }
    step = program.step.trace(state, frozen, batch)
    origins = jax.tree.map(lambda _: NOTHING, state)
    origins = origins._replace(trainable=dict.fromkeys(state.trainable, Origin(trainable=True, batch=False)))
    of_batch = dict.fromkeys(batch, Origin(trainable=False, batch=True))
    return Traced(
        step, list(program.trainable), shared_sizes(step.jaxpr, (origins, dict.fromkeys(frozen, NOTHING), of_batch))
    )


def trace_evaluation(config: Config, mesh: Mesh) -> Traced:
    """Trace the scoring of a batch of windows, the only large program of evaluation and mapping."""
    model = SegmentationModel(dataclasses.replace(config.model, mim=None))
    shards = parallel.batch_shards(mesh)
    count, side = -(-config.evaluate.batch_size // shards) * shards, config.evaluate.window
    shapes, batch = model.shapes(), parallel.batch_sharding(mesh)
    params = _placed(shapes, dict.fromkeys(shapes, parallel.replicated(mesh)))
    images = jax.ShapeDtypeStruct((count, side, side, 3), jnp.uint8, sharding=batch)
    valid = jax.ShapeDtypeStruct((count, side, side), jnp.bool, sharding=batch)
    return Traced(jit_window_scores(model, mesh).trace(params, images, valid), [], set())


def _placed(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def _compile(config: Config, mesh: Mesh, topology: str, step: str, build: Any) -> dict[str, Any]:
    """Compile one step and return its record in `compile.json`."""
    images = config.data.batch_size if step == "train" else config.evaluate.batch_size
    record: dict[str, Any] = {
        "config": config.name, "step": step, "topology": topology, "chips": mesh.size, "mesh": dict(mesh.shape),
        "images_per_chip": images / mesh.size, "image_side": config.model.vit.image_size,
        "dtype": config.model.dtype, "remat": config.model.vit.remat,
    }  # fmt: skip
    chip = chips.chip_of(topology)
    logging.info("compiling the %s step for %s (minutes for large networks)", step, topology)
    with jax.set_mesh(mesh):
        start = time.monotonic()
        traced = build(config, mesh)
        try:
            compiled = traced.step.lower().compile(compiler_options=dict(chip.compiler.options))
        except jax.errors.JaxRuntimeError as error:
            return record | {"failure": compiler_failure(str(error))}
        record["seconds"] = round(time.monotonic() - start, 1)
    record |= describe(compiled, config, mesh, chip, traced)
    return record | memory_failure(record["hbm"]["total"], chip)


def memory_failure(used: float, chip: chips.Chip) -> dict[str, str]:
    """Return the entry "failure" for a step that exceeds the memory of a chip, if the compiler has not refused it."""
    if used <= chip.memory or chip.compiler.refuses_excess:
        return {}
    return {"failure": f"needs {used / 2**30:.2f}G of {chip.memory / 2**30:.2f}G HBM"}


def compiler_failure(message: str) -> str:
    """Return the message of a compiler error in one line; for lack of memory only the sizes."""
    used = re.search(r"Used (\S+) of (\S+) hbm", message)
    return f"needs {used.group(1)} of {used.group(2)} HBM" if used else message.strip().splitlines()[0][:200]


def describe(compiled: Any, config: Config, mesh: Mesh, chip: chips.Chip, traced: Traced) -> dict[str, Any]:
    """Return memory, FLOP, collectives and estimated times of a compiled step, per chip."""
    program = hlo.parse(compiled.as_text())
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    found = explained(program, config, mesh, traced)
    arguments, outputs = memory.argument_size_in_bytes, memory.output_size_in_bytes
    aliased, temporaries = memory.alias_size_in_bytes, memory.temp_size_in_bytes
    flops, sent = program.flops(), collectives.bytes_by_kind(found)
    moved, crossing = arguments + outputs + temporaries, sent.get(collectives.BETWEEN_SLICES, 0.0)
    reasons: dict[str, dict[str, float]] = {}
    for collective in found:
        kinds = reasons.setdefault(collective.reason or "unexplained", {})
        kinds[collective.kind] = kinds.get(collective.kind, 0) + collective.bytes
    bound = chips.roofline(chip, flops, moved, sum(sent.values()) - crossing, crossing)
    return {
        "hbm": {
            "arguments": arguments, "outputs": outputs, "aliased": aliased, "temporaries": temporaries,
            "code": memory.generated_code_size_in_bytes, "capacity": chip.memory,
            "total": arguments + outputs - aliased + temporaries + memory.generated_code_size_in_bytes,
        },
        "flops": flops,
        "sent": sent,
        "reasons": reasons,
        "unexplained": [str(collective) for collective in found if not collective.reason],
        "roofline": bound._asdict(),
        "compiler": {"optimal_seconds": cost.get("optimal_seconds"), "cycles": program.cycles()},
    }  # fmt: skip


def explained(program: hlo.Program, config: Config, mesh: Mesh, traced: Traced) -> list[collectives.Collective]:
    """Return all collectives of a compiled step with their reasons in the shardings."""
    model = SegmentationModel(config.model)
    shapes = model.shapes()
    shardings = parallel.param_shardings(mesh, shapes, model.axes())
    return collectives.explain(collectives.find(program, mesh), shardings, shapes, traced.trainable, traced.shared)


def _refuse_surprises(records: list[dict[str, Any]]) -> None:
    failed = [f"{r['step']} step on {r['topology']}: {r['failure']}" for r in records if "failure" in r]
    if failed:
        raise UserError(
            f"{'; '.join(failed)}; if memory is short, lower --batch_per_chip, split parameters (mesh.fsdp) or "
            "set model.vit.remat to blocks"
        )
    surprises = [f"{r['topology']} {r['step']}: {text}" for r in records for text in r["unexplained"]]
    if surprises:
        raise UserError(
            f"{len(surprises)} collectives are not explained by the shardings of the parameters: "
            f"{'; '.join(surprises)}; constrain the sharding of these arrays, or choose other logical axes"
        )
