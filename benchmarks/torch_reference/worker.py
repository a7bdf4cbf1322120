"""PyTorch's worker process in a comparison; `benchmarks.workers` controls it. Needs torch, numpy and scipy.

The settings favour PyTorch: inference mode, fused attention, no gradients of frozen parameters, buffers of the
optimizer allocated before measuring.
"""

from __future__ import annotations

import argparse
import json
import pathlib

import numpy as np
import torch

from benchmarks import workers
from benchmarks.torch_reference import losses
from benchmarks.torch_reference.model import load


def main() -> None:
    """Load a checkpoint and run the requested tasks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("image", type=pathlib.Path, help=".npz with `image` (normalised) and `labels`")
    parser.add_argument("tasks", nargs="+", choices=["scores", "backbone", "gemm", "step"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--points", type=int, default=losses.LossConfig.points)
    parser.add_argument("--save", help="file to write the scores to (.npy)")
    arguments = parser.parse_args()
    workers.use_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = load(json.loads(arguments.checkpoint.with_suffix(".json").read_text()), str(arguments.checkpoint))
    data = np.load(arguments.image)
    image = torch.as_tensor(data["image"]).permute(0, 3, 1, 2).contiguous()
    labels = torch.as_tensor(data["labels"])
    builders = {
        "scores": lambda: inference(lambda: model.scores(image)),
        "backbone": lambda: inference(lambda: model.backbone(image)),
        "gemm": lambda: gemm(),
        "step": lambda: training_step(model, image, labels, arguments.points),
    }
    tasks = {name: builders[name]() for name in arguments.tasks}
    if arguments.save:
        with torch.inference_mode():
            np.save(arguments.save, model.scores(image).permute(0, 2, 3, 1).numpy())
    workers.serve(tasks, {"version": torch.__version__, "threads": torch.get_num_threads()})


def inference(task):
    """Return the task in inference mode."""

    def run():
        with torch.inference_mode():
            task()

    return run


def gemm(size: int = 4096):
    """Return the task that computes a square matrix product in float32."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    return inference(lambda: a @ b)


def training_step(model, image, labels, points):
    """Return the task of a training step: loss, gradients of Reins and heads, AdamW."""
    config = losses.LossConfig(points=points)
    optimizer = torch.optim.AdamW(model.freeze(), lr=1e-4, weight_decay=0.05)

    def run():
        optimizer.zero_grad()
        losses.set_loss(config, *model(image), labels).backward()
        optimizer.step()

    return run


if __name__ == "__main__":
    main()
