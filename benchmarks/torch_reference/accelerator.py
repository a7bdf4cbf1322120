"""Measure one PyTorch task in the accelerator run: `python -m benchmarks.torch_reference.accelerator TASK …`.

Measures a task (forward, predict, step, both) at every precision, or writes scores for a comparison. Needs torch,
numpy and scipy. The settings favour PyTorch: inference mode, fused attention except in the variant without it, no
gradients of frozen parameters, no augmentations in the training step. `channels_last` is not used.

"tf32" and "float32" set the precision of matrix products and convolutions; "bfloat16" is autocast over the network
and float32 for the losses. The compiled variant compiles the network; the set loss stays eager, because it computes
every matching on the host.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu import stage
from benchmarks.gpu.stage import PLANS, Case, Records
from benchmarks.images import random_images
from benchmarks.torch_reference import losses
from benchmarks.torch_reference.mim import content_masked, reconstruction_loss
from benchmarks.torch_reference.model import CrossEarth, load

VARIANTS = ("eager", "compiled", "eager, attention not fused")
TASKS = ("forward", "predict", "step", "both")
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, RGB
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    """Measure the cases that are not yet in the records."""
    parser = stage.parser("benchmarks.torch_reference.accelerator")
    parser.add_argument("task", choices=("scores", *TASKS))
    parser.add_argument("--save", type=pathlib.Path, help="file for the scores (.npy)")
    arguments = parser.parse_args()
    checkpoint = arguments.scratch / f"{arguments.size}.pth"
    config = json.loads(checkpoint.with_suffix(".json").read_text())
    model = load(config, str(checkpoint)).to(DEVICE)
    side = config["vit"]["image_size"] * stage.scale(arguments)
    torch.manual_seed(0)
    if arguments.task == "scores":
        use_precision("float32")
        images, _ = inputs(side, 1)
        with torch.inference_mode():
            np.save(arguments.save, model.scores(images).permute(0, 2, 3, 1).cpu().numpy())
        return
    records, plan = Records(arguments.records), PLANS[arguments.size]
    for case in stage.cases(arguments.task, side, plan, VARIANTS):
        if case.name not in records:
            records.add(case.name, **vars(case), **measured(model, case, plan, records))


def measured(model: CrossEarth, case: Case, plan: stage.Plan, records: Records) -> dict[str, Any]:
    """Return time and memory of one case, or the error."""
    batch = case.batch or largest(case, plan, records)
    while batch:
        torch.compiler.reset()
        try:
            with using(case.precision, case.variant) as forward_context:
                task = TASK_BUILDERS[case.task](model, case, batch, plan, forward_context)
                found = timed(task, plan.seconds)
            images = 1 if case.task == "predict" else batch  # one scene, independent of the batch of windows
            return {"images": images, "version": torch.__version__} | found
        except torch.OutOfMemoryError:
            task = None  # frees its memory before the next attempt
            empty()
            batch = batch * 3 // 4 if case.batch is None else 0
        except Exception as error:  # a variant that fails must not stop the others
            if "out of memory" in str(error) and case.batch is None:  # raised during compilation
                batch = batch * 3 // 4
                continue
            return {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        finally:
            empty()
    return {"error": "out of memory"}


def largest(case: Case, plan: stage.Plan, records: Records) -> int:
    """Return the largest batch that fits, extrapolated from eager runs; compiled runs take about as much memory."""
    known = {}
    for batch in filter(None, plan.batches):
        found = records.found.get(Case(case.task, case.side, batch, case.precision, "eager").name, {})
        if "bytes" in found:
            known[batch] = found["bytes"]
    if len(known) < 2 or DEVICE.type != "cuda":
        return plan.most
    return stage.largest_batch(known, 0.9 * torch.cuda.mem_get_info()[1], plan.most)


@contextlib.contextmanager
def using(precision: str, variant: str):
    """Set the precision of products and the attention kernel; yield the autocast context for the network."""
    use_precision(precision)
    autocast = torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bfloat16")
    attention = sdpa_kernel(SDPBackend.MATH) if "not fused" in variant else contextlib.nullcontext()
    with attention:
        yield autocast


def use_precision(precision: str) -> None:
    """Set the precision of float32 products: float32, or operands rounded to tf32 if the GPU supports it."""
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "float32"


def inputs(side: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return normalised images (b, 3, s, s) and labels (b, s, s) on the device."""
    pixels, labels = random_images(side, batch)
    return normalised(torch.as_tensor(pixels, device=DEVICE)), torch.as_tensor(labels, device=DEVICE)


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """Normalise uint8 images (b, h, w, 3); return (b, 3, h, w)."""
    mean, deviation = (torch.tensor(x, device=DEVICE) for x in (MEAN, DEVIATION))
    return ((pixels.float() - mean) / deviation).permute(0, 3, 1, 2).contiguous()


def prepared(function: Callable[..., Any], case: Case) -> Callable[..., Any]:
    """Return the function, compiled if the variant is "compiled"; on a CPU (rehearsal) without code generation."""
    if case.variant != "compiled":
        return function
    return torch.compile(function, dynamic=False, backend="inductor" if DEVICE.type == "cuda" else "aot_eager")


def forward(model: CrossEarth, case: Case, batch: int, plan: stage.Plan, context: Any) -> Callable[[], Any]:
    """Return the task that computes the scores of a batch of windows."""
    del plan
    images, _ = inputs(case.side, batch)
    scores = prepared(model.scores, case)

    @torch.inference_mode()
    def run() -> None:
        with context:
            scores(images)

    return run


def predict(model: CrossEarth, case: Case, batch: int, plan: stage.Plan, context: Any) -> Callable[[], Any]:
    """Return the task that predicts a scene by windows that overlap by a third; labels end in host memory."""
    del plan
    window = model.window
    starts = sorted({min(i, case.side - window) for i in range(0, case.side, window * 2 // 3)})
    corners = list(itertools.product(starts, starts))
    pixels = torch.as_tensor(random_images(case.side)[0], device=DEVICE)
    scores = prepared(model.scores, case)

    @torch.inference_mode()
    def run() -> np.ndarray:
        scene = normalised(pixels)
        total = torch.zeros(model.classes, case.side, case.side, device=DEVICE)
        for first in range(0, len(corners), batch):
            some = corners[first : first + batch]
            # The last group is filled up, because a compiled network has a static batch size.
            filled = (some * batch)[:batch]
            with context:
                found = scores(torch.cat([scene[..., y : y + window, x : x + window] for y, x in filled]))
            for (y, x), score in zip(some, found, strict=False):
                total[:, y : y + window, x : x + window] += score
        return total.argmax(0).to(torch.uint8).cpu().numpy()

    return run


def step(model: CrossEarth, case: Case, batch: int, plan: stage.Plan, context: Any) -> Callable[[], Any]:
    """Return the task of a training step: loss, gradients, AdamW; for "both" also reconstruction, in a second pass."""
    images, labels = inputs(case.side, batch)
    config = losses.LossConfig(points=plan.points)
    optimizer = torch.optim.AdamW(model.freeze(), lr=1e-4, weight_decay=0.05, fused=DEVICE.type == "cuda")
    network, rebuild = prepared(model, case), prepared(model.reconstruct, case)

    def run() -> None:
        optimizer.zero_grad()
        with context:
            predictions = network(images)
        loss = losses.set_loss(config, *([x.float() for x in some] for some in predictions), labels)
        if case.task == "both":
            with context:
                rebuilt = rebuild(content_masked(images, model.mask_token))
            loss = loss + reconstruction_loss(images, rebuilt.float())
        loss.backward()
        optimizer.step()

    return run


TASK_BUILDERS = {"forward": forward, "predict": predict, "step": step, "both": step}


def timed(task: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """Return the seconds of a call and, on a GPU, the peak memory of tensors."""
    if DEVICE.type != "cuda":
        return stage.measure(task, lambda result: None, seconds)
    task()
    torch.cuda.reset_peak_memory_stats()
    found = stage.measure(task, lambda result: torch.cuda.synchronize(), seconds)
    return found | {"bytes": torch.cuda.max_memory_allocated()}


def empty() -> None:
    """Free the memory of the last case."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
