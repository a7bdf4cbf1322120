"""Count the parameters and floating-point operations of every head, for prediction and for a training step.

    python -m benchmarks.heads                          # counts at ViT-L, images of 512 x 512 pixels
    python -m benchmarks.heads --size=vit_s --rounds=5  # and times on this machine

The backbone is frozen and has no adapter, so that only the heads differ. A training step here is the loss and its
gradient for one image. The forward passes that gradient checkpointing repeats are counted. Times are medians of
alternating calls.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.flops import count_flops
from benchmarks.images import random_images
from benchmarks.workers import timed
from crossearth_jax.config import HeadConfig, LossConfig, ModelConfig, ViTConfig
from crossearth_jax.losses.segmentation import segmentation_loss
from crossearth_jax.models.heads import HEADS
from crossearth_jax.models.network import Params, SegmentationModel
from crossearth_jax.models.segmentation_head import Training
from crossearth_jax.ops.normalization import normalize

SIDE = 512  # pixels
SIZES = {
    "vit_l": (ViTConfig(), 4),
    "vit_s": (ViTConfig(width=384, depth=12, heads=6, mlp_width=1536, feature_blocks=(3, 5, 7, 11)), 3),
}  # backbone, and the number of last blocks of EoMT that its authors use for it


def build(size: str, kind: str) -> SegmentationModel:
    """Return a model of this size with this head."""
    vit, last_blocks = SIZES[size]
    return SegmentationModel(ModelConfig(vit=vit, adapter="none", head=HeadConfig(kind=kind, last_blocks=last_blocks)))


def gradient(
    model: SegmentationModel, trainable: Params, frozen: Params, images: jax.Array, labels: jax.Array
) -> Params:
    """Return the gradient of the loss by the parameters of the head."""
    config = LossConfig(pixel_weight=0.0 if model.queries else 1.0)

    def loss(trainable: Params) -> jax.Array:
        params = trainable | frozen
        features = model.features(params, images, for_head_only=True)
        predictions = model.decode(params, features, Training(jnp.zeros(()), jax.random.key(0)))
        terms = segmentation_loss(config, jax.random.key(0), predictions, labels)
        return sum(terms.values(), jnp.zeros(()))

    return jax.grad(loss)(trainable)


def split(params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split parameters into those of the head and all others."""
    head = {name: x for name, x in params.items() if name.startswith("head/")}
    return head, {name: x for name, x in params.items() if name not in head}


def main(argv: Sequence[str] | None = None) -> None:
    """Print one line of Markdown per head."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.heads", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="vit_l")
    parser.add_argument("--rounds", type=int, default=0, help="timed calls of each function; 0: only counts")
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    arguments = parser.parse_args(argv)
    images = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((1, SIDE, SIDE), jnp.uint8)
    print("| head | parameters | prediction, GFLOP | training step, GFLOP |")
    print("|---|---|---|---|")
    for kind in arguments.heads:
        model = build(arguments.size, kind)
        head, frozen = split(model.shapes())
        prediction = jax.jit(model.scores).trace(head | frozen, images).jaxpr
        step = jax.jit(functools.partial(gradient, model)).trace(head, frozen, images, labels).jaxpr
        parameters = sum(shape.size for shape in head.values())
        print(f"| {kind} | {parameters:,} | {count_flops(prediction) / 1e9:,.0f} | {count_flops(step) / 1e9:,.0f} |")
    if arguments.rounds:
        measure(arguments.size, arguments.heads, arguments.rounds)


def measure(size: str, heads: Sequence[str], rounds: int) -> None:
    """Print the median times of prediction and gradient with each head."""
    pixels, labels = random_images(SIDE)
    images = normalize(jnp.asarray(pixels))
    calls: dict[str, Callable[[], Any]] = {}
    for kind in heads:
        model = build(size, kind)
        head, frozen = split(jax.jit(model.init)(jax.random.key(0)))
        score, step = jax.jit(model.scores), jax.jit(functools.partial(gradient, model))
        calls[f"{kind}, prediction"] = functools.partial(score, head | frozen, images)
        calls[f"{kind}, training step"] = functools.partial(step, head, frozen, images, jnp.asarray(labels))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):  # the first compiles
        for name, call in calls.items():
            elapsed = timed(lambda call=call: jax.block_until_ready(call()))["seconds"]
            if number:
                seconds[name].append(elapsed)
    for name, found in seconds.items():
        print(f"{name}: {statistics.median(found):.3f} s")


if __name__ == "__main__":
    main()
