"""Worker process of this package in a comparison; `benchmarks.workers` controls it."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import workers
from benchmarks.sizes import REMATS, SIZES, Size
from crossearth_jax.config import (
    AugmentConfig,
    Config,
    DataConfig,
    LossConfig,
    MeshConfig,
    MimTaskConfig,
    StyleConfig,
    ViTConfig,
)
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.runtime import parallel
from crossearth_jax.training.program import build_program
from crossearth_jax.training.styles import style_network
from crossearth_jax.weights.load import load_weights
from crossearth_jax.weights.style_files import load_style

Params = dict[str, jax.Array]
Task = Callable[[], Any]

STEPS = ("step", "both_tasks", "styled")


def main() -> None:
    """Load a checkpoint and run the requested tasks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("image", type=pathlib.Path, help=".npz with `image` (normalised), `pixels` and `labels`")
    parser.add_argument("tasks", nargs="+", choices=["scores", "backbone", "gemm", *STEPS])
    parser.add_argument("--size", choices=SIZES, default="vit_l")
    parser.add_argument("--remat", choices=REMATS, default=ViTConfig.remat, help="model.vit.remat of training steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", help="file to write the scores to (.npy)")
    arguments = parser.parse_args()
    workers.use_threads(arguments.threads)
    size, data = SIZES[arguments.size], dict(np.load(arguments.image))
    weights = load_weights(arguments.checkpoint, config=size.model)
    # Only the tensors that are used: the others are views that would keep the whole memory-mapped file in memory.
    params = {name: jnp.asarray(weights.params[name]) for name in SegmentationModel(size.model).shapes()}
    del weights
    facts: dict[str, Any] = {"version": jax.__version__, "threads": arguments.threads}
    tasks: dict[str, Task] = {}
    for name in arguments.tasks:
        if name in STEPS:
            tasks[name], facts[name] = training_step(step_config(name, size, arguments.remat), params, data)
        else:
            tasks[name] = gemm() if name == "gemm" else inference(name, size, params, data)
    if arguments.save:
        np.save(arguments.save, tasks["scores"]())
    workers.serve(tasks, facts)


def inference(name: str, size: Size, params: Params, data: Mapping[str, np.ndarray]) -> Task:
    """Return the task that computes the scores, or the backbone's features, of one window."""
    model = SegmentationModel(size.model)
    function = jax.jit({"scores": model.scores, "backbone": model.features}[name])
    image = jnp.asarray(data["image"])
    return lambda: jax.block_until_ready(function(params, image))


def gemm(size: int = 4096) -> Task:
    """Return the task that computes a square matrix product in float32."""
    a, b = jax.random.uniform(jax.random.key(0), (2, size, size))
    product = jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(product(a, b))


def step_config(name: str, size: Size, remat: str = ViTConfig.remat) -> Config:
    """Return the configuration of a step: segmentation, both tasks, or both with every image restyled; batch size 1."""
    both = name != "step"
    model = dataclasses.replace(size.model, vit=dataclasses.replace(size.model.vit, remat=remat))
    return Config(
        name="benchmark",
        data=DataConfig(batch_size=1),
        augment=AugmentConfig(crop_size=size.image),
        model=model if both else dataclasses.replace(model, mim=None),
        loss=LossConfig(points=size.points),
        mim=MimTaskConfig() if both else None,
        style=StyleConfig(probability=1.0) if name == "styled" else None,
    )


def training_step(
    config: Config, params: Params, data: Mapping[str, np.ndarray], devices: int = 1
) -> tuple[Task, dict[str, float]]:
    """Return the task that runs a training step, augmentations included, and facts about its compiled program.

    The facts are the seconds of compilation and the bytes of the frozen weights, of the training state (trainable
    weights, optimizer) and of everything that lives only during a step (saved activations, gradients, intermediates).
    """
    mesh = parallel.make_mesh(MeshConfig(), jax.devices()[:devices])
    with jax.set_mesh(mesh):
        program = build_program(config, mesh)
        style = load_style(style_network(config)) if config.style else {}
        frozen = {name: (params | style)[name] for name in program.frozen}
        state = program.create_state({name: params[name] for name in program.trainable})
        batch = parallel.global_batch({"image": data["pixels"], "label": data["labels"]}, mesh)
        before = time.perf_counter()
        compiled = program.step.lower(state, frozen, batch).compile()
        facts: dict[str, float] = {
            "compile_seconds": time.perf_counter() - before,
            "frozen_bytes": _size(frozen),
            "state_bytes": _size(state),
            "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        }

    def run() -> None:
        nonlocal state
        state, metrics = compiled(state, frozen, batch)
        jax.block_until_ready(metrics)

    return run, facts


def _size(tree: Any) -> int:
    """Return the bytes of all arrays of a tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


if __name__ == "__main__":
    main()
