"""Measure one task of this package at every precision: `python -m benchmarks.gpu.ours TASK …`.

Tasks are forward (scores of windows), predict (classes of a scene by sliding window), step (training step,
segmentation), both (with masked image modelling) and styled (both, each image restyled with probability 0.1). Steps
are the package's own, augmentations included, on a mesh of one device.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.flops import count_flops
from benchmarks.gpu import stage
from benchmarks.gpu.stage import PLANS, Case, Plan, Records
from benchmarks.images import random_images
from benchmarks.jax_worker import step_config
from benchmarks.sizes import SIZES, Size
from crossearth_jax.config import Config, MeshConfig, ModelConfig
from crossearth_jax.inference.segmentor import Segmentor, default_stride
from crossearth_jax.models.network import Params, SegmentationModel
from crossearth_jax.ops.normalization import normalize
from crossearth_jax.runtime import command, parallel
from crossearth_jax.training.program import Program, build_program
from crossearth_jax.training.state import TrainState
from crossearth_jax.training.styles import style_network
from crossearth_jax.weights.load import load_weights
from crossearth_jax.weights.native import Description
from crossearth_jax.weights.style_files import load_style

# Matrix products of float32 arrays: JAX's default allows the GPU to round operands to tf32 (measured by stage "right").
PRODUCTS = {"bfloat16": "default", "tf32": "default", "float32": "highest"}
STEPS = {"step": "step", "both": "both_tasks", "styled": "styled"}  # ours and the names of benchmarks.jax_worker
TASKS = ("forward", "predict", *STEPS)
STYLED = 0.1  # probability that an image is restyled
THREADS = 4  # programs that are compiled in parallel; nothing is timed at the same time


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled program."""

    start: Callable[[], Any]
    images: int
    bytes: int | None  # device memory of arguments, results and intermediate arrays
    flops: int  # of products and convolutions, without recomputation in the backward pass
    compile_seconds: float


@dataclasses.dataclass(frozen=True)
class Bench:
    """Network, plan and parameters that all cases of a process share."""

    size: Size
    plan: Plan
    params: Params

    @classmethod
    def load(cls, size: str, checkpoint: pathlib.Path) -> Bench:
        """Load the checkpoint to the device."""
        model = SIZES[size].model
        weights = load_weights(checkpoint, config=model)
        # Only the tensors that are used: the others would keep the whole memory-mapped file in memory.
        params = {name: jnp.asarray(weights.params[name]) for name in SegmentationModel(model).shapes()}
        return cls(SIZES[size], PLANS[size], params)

    def model(self, precision: str) -> ModelConfig:
        """Return the configuration of the network at a precision."""
        return dataclasses.replace(self.size.model, dtype="bfloat16" if precision == "bfloat16" else "float32")


def main(argv: Sequence[str]) -> None:
    """Measure the cases that are not yet in the records."""
    parser = stage.parser("benchmarks.gpu.ours")
    parser.add_argument("task", choices=TASKS)
    arguments = parser.parse_args(argv)
    records = Records(arguments.records)
    bench = Bench.load(arguments.size, arguments.scratch / f"{arguments.size}.pth")
    side = bench.size.image * stage.scale(arguments)
    wanted = [case for case in stage.cases(arguments.task, side, bench.plan, ["ours"]) if case.name not in records]
    # Cases with the same batch are compiled together, then timed one after the other.
    for batch in dict.fromkeys(case.batch for case in wanted):
        measure_together(bench, [case for case in wanted if case.batch == batch], records)


def measure_together(bench: Bench, cases: Sequence[Case], records: Records) -> None:
    """Compile cases in parallel, then measure each."""
    build = functools.partial(build_case, bench, records)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        built = [pool.submit(build, case) for case in cases]
        concurrent.futures.wait(built)
    for case, future in zip(cases, built, strict=True):
        try:
            compiled = future.result()
            timed = stage.measure(compiled.start, jax.block_until_ready, bench.plan.seconds)
            found = {key: value for key, value in vars(compiled).items() if key != "start"} | timed
        except jax.errors.JaxRuntimeError as error:  # a case that fails must not stop the others
            found = {"error": str(error)[:300]}
        records.add(case.name, **vars(case), **found, version=jax.__version__)


def build_case(bench: Bench, records: Records, case: Case) -> Compiled:
    """Compile the program of a case; with batch None, for the largest batch that fits into memory."""
    with jax.default_matmul_precision(PRODUCTS[case.precision]):
        if case.batch is not None:
            return build(bench, case, case.batch)
        batch = largest(bench, case, records)
        while True:
            try:
                return build(bench, case, batch)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error) or batch <= bench.plan.some:
                    raise
                batch = batch * 3 // 4


def largest(bench: Bench, case: Case, records: Records) -> int:
    """Return the largest batch that fits, extrapolated from the memory of two other batches."""
    known = {}
    for batch in filter(None, bench.plan.batches):
        found = records.found.get(dataclasses.replace(case, batch=batch).name, {})
        if "bytes" in found:
            known[batch] = found["bytes"]
    statistics = jax.devices()[0].memory_stats() or {}
    if len(known) < 2 or "bytes_limit" not in statistics:
        return bench.plan.most
    # The shared parameters always stay on the device, and some programs hold their own copies.
    resident = 2 * sum(x.nbytes for x in bench.params.values())
    return stage.largest_batch(known, 0.95 * statistics["bytes_limit"] - resident, bench.plan.most)


def build(bench: Bench, case: Case, batch: int) -> Compiled:
    """Compile the program of a case for a batch size."""
    if case.task == "forward":
        return build_forward(bench, case, batch)
    if case.task == "predict":
        return build_predict(bench, case, batch)
    return build_step(bench, case, batch)


def build_forward(bench: Bench, case: Case, batch: int) -> Compiled:
    """Compile the scores of normalised images."""
    model = SegmentationModel(bench.model(case.precision))
    images = normalize(jnp.asarray(random_images(case.side, batch)[0]))
    compiled, seconds = compile_timed(jax.jit(model.scores).lower(bench.params, images))
    flops = forward_flops(bench, case.side, batch)
    return Compiled(lambda: compiled(bench.params, images), batch, program_bytes(compiled), flops, seconds)


def forward_flops(bench: Bench, side: int, batch: int) -> int:
    """Return the number of operations for the scores of a batch."""
    images = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.float32)
    return count_flops(jax.jit(SegmentationModel(bench.size.model).scores).trace(bench.params, images).jaxpr)


def build_predict(bench: Bench, case: Case, batch: int) -> Compiled:
    """Compile the prediction of a scene by sliding window, including the transfer of the labels to the host."""
    window = bench.size.image
    model = SegmentationModel(bench.model(case.precision))
    described = Description(model=model.config, window=window, stride=default_stride(window))
    segmentor = Segmentor(model, bench.params, described)
    scene = random_images(case.side)[0]
    precision = PRODUCTS[case.precision]

    def start() -> np.ndarray:
        with jax.default_matmul_precision(precision):
            return segmentor.predict(scene, batch)

    before = time.perf_counter()
    start()
    seconds = time.perf_counter() - before
    count = len(segmentor.sliding_windows().plan((case.side, case.side)))
    return Compiled(start, 1, None, count * forward_flops(bench, window, 1), seconds)


def build_step(bench: Bench, case: Case, batch: int, options: dict[str, Any] | None = None) -> Compiled:
    """Compile a training step; each call continues from the state of the last one.

    Args:
      bench: network, plan and parameters.
      case: task, image size and precision.
      batch: number of images.
      options: compiler options that differ from the defaults.
    """
    config = config_of_step(bench, case, batch)
    with jax.set_mesh(parallel.make_mesh(MeshConfig(), jax.devices()[:1])):
        program, state, arguments = start_of_training(bench, config, case.side)
        flops = step_flops(config, state, arguments)
        compiled, seconds = compile_timed(program.step.lower(state, *arguments), options)

    def start() -> Any:
        nonlocal state
        state, metrics = compiled(state, *arguments)
        return metrics

    return Compiled(start, batch, program_bytes(compiled), flops, seconds)


def config_of_step(bench: Bench, case: Case, batch: int) -> Config:
    """Return the configuration whose step is measured."""
    config = step_config(STEPS[case.task], bench.size)
    model = dataclasses.replace(config.model, dtype=bench.model(case.precision).dtype)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, batch_size=batch),
        model=model,
        augment=dataclasses.replace(config.augment, crop_size=case.side),
        style=config.style and dataclasses.replace(config.style, probability=STYLED),
    )


def start_of_training(bench: Bench, config: Config, side: int) -> tuple[Program, TrainState, tuple[Params, Any]]:
    """Return the program on the active mesh, the initial state, and the other arguments of the step."""
    mesh = parallel.make_mesh(MeshConfig(), jax.devices()[:1])
    program = build_program(config, mesh)
    style = load_style(style_network(config)) if config.style else {}
    frozen = {name: jnp.asarray((bench.params | style)[name]) for name in program.frozen}
    state = program.create_state({name: bench.params[name] for name in program.trainable})
    pixels, labels = random_images(side, config.data.batch_size)
    return program, state, (frozen, parallel.global_batch({"image": pixels, "label": labels}, mesh))


def step_flops(config: Config, state: TrainState, arguments: Any) -> int:
    """Return the number of operations of the step without rematerialisation; of the style network, the maximum."""
    vit = dataclasses.replace(config.model.vit, remat="none")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vit=vit))
    mesh = parallel.make_mesh(MeshConfig(), jax.devices()[:1])
    program = build_program(config, mesh)
    return count_flops(program.step.trace(state, *arguments).jaxpr)


def compile_timed(lowered: Any, options: dict[str, Any] | None = None) -> tuple[Any, float]:
    """Return the compiled program and the seconds of its compilation."""
    before = time.perf_counter()
    compiled = lowered.compile(options)
    return compiled, time.perf_counter() - before


def program_bytes(compiled: Any) -> int:
    """Return the device memory of a call: arguments, results and intermediate arrays; shared buffers count once."""
    memory = compiled.memory_analysis()
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return kept + memory.temp_size_in_bytes


if __name__ == "__main__":
    command.run(main)
