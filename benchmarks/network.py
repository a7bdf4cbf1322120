"""Compare the network with PyTorch: scores, forward pass, training step; measure the cost of restyling."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks import workers
from benchmarks.checkpoint import write_checkpoint
from benchmarks.images import random_images
from benchmarks.sizes import REMATS, SIZES
from crossearth_jax.config import ModelConfig
from crossearth_jax.ops.normalization import normalize

Result = dict[str, Any]
GEMM_FLOPS = 2 * 4096**3


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the measurements."""

    scratch: pathlib.Path  # for the checkpoint (1.3 GB) and small files
    size: str = "vit_l"
    torch_python: str | None = None  # interpreter that has torch, numpy and scipy
    rounds: int = 5
    threads: int = 2

    @property
    def checkpoint(self) -> pathlib.Path:
        """File of random weights; written at the first access."""
        path = self.scratch / f"{self.size}.pth"
        if not path.exists():
            write_checkpoint(path, SIZES[self.size].model)
        return path

    @property
    def image(self) -> pathlib.Path:
        """File of a random image with labels, 8-bit and normalised; written at the first access."""
        path = self.scratch / f"image_{self.size}.npz"
        if not path.exists():
            pixels, labels = random_images(SIZES[self.size].image)
            np.savez(path, pixels=pixels, image=np.asarray(normalize(jnp.asarray(pixels))), labels=labels)
        return path

    def jax(self, *arguments: str) -> list[str]:
        """Return the command of this package's worker."""
        common = [f"--size={self.size}", f"--threads={self.threads}"]
        return workers.jax_command(str(self.checkpoint), str(self.image), *arguments, *common)

    def torch(self, *arguments: str) -> list[str]:
        """Return the command of PyTorch's worker."""
        assert self.torch_python
        common = [f"--points={SIZES[self.size].points}", f"--threads={self.threads}"]
        return workers.torch_command(self.torch_python, str(self.checkpoint), str(self.image), *arguments, *common)

    def both(self, *tasks: str) -> list[workers.Worker]:
        """Start this package's worker, and PyTorch's if `torch_python` is given."""
        commands = [self.jax(*tasks), *([self.torch(*tasks)] if self.torch_python else [])]
        return [workers.start(command) for command in commands]


def parity(options: Options) -> Result:
    """Convert a full-size checkpoint and score one window; return memory and the difference from PyTorch's scores."""
    ours, converted = options.scratch / "ours.npy", options.scratch / f"{options.size}.safetensors"
    config = f"--config={options.checkpoint.with_suffix('.json')}"
    convert = [sys.executable, "-m", "crossearth_jax.convert", str(options.checkpoint), str(converted), config]
    result: Result = {"convert_peak_bytes": _peak(convert)}
    program = (
        "import sys, numpy, crossearth_jax; model = crossearth_jax.load(sys.argv[1]);"
        "numpy.save(sys.argv[3], model.scores(numpy.load(sys.argv[2])['image']))"
    )
    result["score_peak_bytes"] = _peak([sys.executable, "-c", program, str(converted), str(options.image), str(ours)])
    scores = np.load(ours)
    result |= {"least_score": float(scores.min()), "greatest_score": float(scores.max())}
    if options.torch_python:
        theirs = options.scratch / "theirs.npy"
        workers.start(options.torch("scores", f"--save={theirs}")).close()
        result["greatest_difference"] = float(np.abs(scores - np.load(theirs)).max())
    return result


def _peak(command: list[str]) -> int:
    """Run a command; return its peak memory in bytes."""
    program = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=sys.stderr);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *command], check=True, capture_output=True, text=True, cwd=workers.ROOT
    )
    return int(done.stdout) * (1 if sys.platform == "darwin" else 1024)


def forward(options: Options) -> Result:
    """Time scores of one window and the backbone, alternating with PyTorch, and compare with matrix products."""
    tasks = ("scores", "backbone", "gemm")
    started = options.both(*tasks)
    found = workers.rounds(started, tasks, options.rounds)
    names = ("ours", "torch")[: len(started)]
    result: Result = {"facts": dict(zip(names, (worker.facts for worker in started), strict=True))}
    peaks = {name: GEMM_FLOPS / min(workers.seconds(one, "gemm")) for name, one in zip(names, found, strict=True)}
    result["gemm_peak_gflops"] = {name: peak / 1e9 for name, peak in peaks.items()}
    flops = backbone_flops(SIZES[options.size].model, SIZES[options.size].image)
    for name, one, worker in zip(names, found, started, strict=True):
        result[name] = {task: workers.spread(workers.seconds(one, task)) for task in tasks}
        for share, kind in (("backbone_share_of_gemm", "seconds"), ("backbone_share_of_gemm_cpu", "cpu_seconds")):
            pairs = zip(workers.seconds(one, "backbone", kind), workers.seconds(one, "gemm", kind), strict=True)
            result[name][share] = workers.spread([flops / b / (GEMM_FLOPS / g) for b, g in pairs])
        result[name]["peak_bytes"] = worker.close()["peak_bytes"]
    result["rounds"] = dict(zip(names, found, strict=True))
    if len(found) == 2:
        result["ratios"] = _ratios(found, tasks)
    return result


def _ratios(found: Any, tasks: tuple[str, ...]) -> Result:
    """Return our time divided by PyTorch's: wall time, and processor time, which other programs disturb less."""
    ratios: Result = {}
    for task in tasks:
        for kind in ("seconds", "cpu_seconds"):
            pair = (workers.seconds(one, task, kind) for one in found)
            ratios[f"{task}/{kind}"] = workers.ratios(*pair)
    return ratios


def backbone_flops(config: ModelConfig, side: int) -> int:
    """Return the number of multiplications and additions of backbone and Reins for one square image."""
    vit, patches = config.vit, (side // config.vit.patch_size) ** 2
    width, tokens = vit.width, patches + 1 + vit.registers
    layer = 2 * tokens * width * (4 * width + 2 * vit.mlp_width) + 4 * tokens**2 * width
    if rein := config.rein:
        layer += 2 * width * (2 * patches * rein.tokens + patches * width + rein.tokens * width)
    return vit.depth * layer + 2 * patches * 3 * vit.patch_size**2 * width


def step(options: Options) -> Result:
    """Measure one training step (segmentation, batch 1) for every `vit.remat`, alternating with PyTorch."""
    return {remat: _step(options, remat) for remat in REMATS}


def _step(options: Options, remat: str) -> Result:
    """Measure time, memory and compilation of one training step."""
    commands = [options.jax("step", f"--remat={remat}"), *([options.torch("step")] if options.torch_python else [])]
    started = [workers.start(command) for command in commands]
    found = workers.rounds(started, ("step",), options.rounds)
    result: Result = {}
    for name, one, worker in zip(("ours", "torch"), found, started, strict=False):
        result[name] = {"seconds": workers.spread(workers.seconds(one, "step")), "facts": worker.facts}
        result[name]["peak_bytes"] = worker.close()["peak_bytes"]
    result["rounds"] = dict(zip(("ours", "torch"), found, strict=False))
    if len(found) == 2:
        memory = result["ours"]["peak_bytes"] / result["torch"]["peak_bytes"]
        result["ratios"] = _ratios(found, ("step",)) | {"memory": memory}
    return result


def styled(options: Options) -> Result:
    """Compare steps of segmentation, of both tasks, and of both tasks with every image restyled.

    The cost of restyling a tenth of the images is computed from the last two. All ratios are of processor time.
    """
    tasks = ("step", "both_tasks", "styled")
    worker = workers.start(options.jax(*tasks))
    (found,) = workers.rounds([worker], tasks, options.rounds)
    worker.close()
    step, both, styled = (workers.seconds(found, task, "cpu_seconds") for task in tasks)
    return {
        "ratio_of_both_tasks": workers.ratios(both, step),
        "ratio_at_one_tenth": workers.spread([0.9 + 0.1 * b / a for a, b in zip(both, styled, strict=True)]),
        "ratio_all_styled": workers.ratios(styled, both),
        "rounds": found,
    }


def write(path: pathlib.Path, result: Result) -> None:
    """Write a result as JSON."""
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
