"""Measure how time and memory grow with image size, batch, classes, devices, scene size and prepared records.

`python -m benchmarks.growth [NAMES...] [--out=growth.json] [--figure=growth.png]`

NAMES are image, batch, classes, devices, scene and records; without names, all of them. Results of the others are kept
in the file. The training steps are those of a ViT of width 192 with the paper's head, which a CPU runs in seconds;
times are processor time of all threads, and memory is that of the compiled program (saved activations, gradients and
intermediates, without the weights). Scenes are mapped by a tiny network, each in its own process, whose peak memory
counts; this needs the extra `geo`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Callable

import jax
import matplotlib.pyplot as plt
import numpy as np
from absl import logging
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image

from benchmarks import workers
from benchmarks.host import machine
from benchmarks.images import random_images
from benchmarks.jax_worker import training_step
from crossearth_jax.config import AugmentConfig, Config, DataConfig, ModelConfig, ViTConfig
from crossearth_jax.inputs.loader import train_iterator
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.prepare import prepare_file
from crossearth_jax.runtime import command

Point = dict[str, float]  # what was measured at one size
ROUNDS = 3
VIT = ViTConfig(image_size=256, width=192, depth=12, heads=3, mlp_width=768, feature_blocks=(2, 5, 8, 11))


def step(side: int, batch: int = 1, classes: int = 6, devices: int = 1) -> Point:
    """Measure a training step (segmentation): the least time of a few, and the bytes that live only during it."""
    config = Config(
        name="growth",
        data=DataConfig(batch_size=batch),
        model=ModelConfig(classes=classes, vit=dataclasses.replace(VIT, image_size=side)),
        augment=AugmentConfig(crop_size=side),
    )
    params = jax.jit(SegmentationModel(config.model).init)(jax.random.key(0))
    pixels, labels = random_images(side, batch)
    run, facts = training_step(config, params, {"pixels": pixels, "labels": labels % classes}, devices)
    run()
    return {
        "seconds": min(workers.timed(run)["cpu_seconds"] for _ in range(ROUNDS)),
        "bytes": facts["temporary_bytes"],
    }


def scene(side: int) -> Point:
    """Map a scene with a tiny network in a process of its own."""
    from benchmarks import map_memory  # needs the extra `geo`

    with tempfile.TemporaryDirectory() as folder:
        map_memory.write_model(pathlib.Path(folder))
        found = map_memory.measure(pathlib.Path(folder), side, [])
    return {"seconds": found["cpu_seconds"], "bytes": found["bytes"]}


def records(count: int) -> Point:
    """Prepare as many pictures of 64 pixels; measure this, and the time from opening them to the first batch."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        for i in range(count):
            pixels[0, 0] = i % 256, i // 256 % 256, i // 65536
            Image.fromarray(pixels).save(root / f"image_{i}.png", compress_level=1)
            Image.fromarray(pixels[..., 0] % 2).save(root / f"label_{i}.png", compress_level=1)
        file = root / "domains.toml"
        file.write_text(DOMAINS)
        prepared = workers.timed(lambda: prepare_file(file, folder))["cpu_seconds"]
        data = DataConfig(source="growth/pictures", data_dir=folder, batch_size=8)
        opened = workers.timed(lambda: next(train_iterator(data, seed=0)))["cpu_seconds"]
    return {"prepare seconds": prepared, "first batch seconds": opened}


DOMAINS = """
name = "growth"

[taxonomy]
classes = ["even", "odd"]

[domains.pictures]
images = "image_*.png"
labels = "label_*.png"
split = { by = "random", test = 0.1 }
"""

# What grows -> the function that measures a point, its sizes, and their unit.
SWEEPS: dict[str, tuple[Callable[[int], Point], tuple[int, ...], str]] = {
    "image": (lambda side: step(side), (64, 128, 256, 384, 512, 768), "side of the image, pixels"),
    "batch": (lambda count: step(128, batch=count), (1, 2, 4, 8, 16), "images in a batch"),
    "classes": (lambda count: step(256, classes=count), (2, 6, 20, 60, 150), "classes"),
    "devices": (lambda count: step(128, batch=8, devices=count), (1, 2, 4, 8), "virtual devices, batch of 8"),
    "scene": (scene, (512, 1024, 2048, 4096, 8192), "side of the scene, pixels"),
    "records": (records, (100, 1000, 10_000), "prepared records"),
}


def main(argv: list[str]) -> None:
    """Measure the named sweeps, write all results and draw them."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAMES", help=", ".join(SWEEPS))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("growth.json"))
    parser.add_argument("--figure", type=pathlib.Path, default=pathlib.Path("growth.png"))
    parser.add_argument("--points", type=int, help="measure only the first points of each sweep")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.names) - set(SWEEPS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(SWEEPS)}")
    jax.config.update("jax_num_cpu_devices", 8)
    results = json.loads(arguments.out.read_text("utf-8")) if arguments.out.exists() else {}
    for name in arguments.names or SWEEPS:
        measure, sizes, _ = SWEEPS[name]
        points: dict[str, Point] = {}
        for size in sizes[: arguments.points]:
            points[str(size)] = measure(size)
            logging.info("%s %d: %s", name, size, points[str(size)])
            jax.clear_caches()
        results[name] = {"machine": machine(), "points": points}
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    draw(results, arguments.figure)


def draw(results: dict[str, dict[str, dict[str, Point]]], path: pathlib.Path) -> None:
    """Draw one panel per sweep: seconds on the left axis, memory on the right one, all axes logarithmic."""
    figure, axes = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    for ax, (name, (_, _, unit)) in zip(axes.flat, SWEEPS.items(), strict=True):
        if name not in results:
            ax.set_axis_off()
            continue
        points = results[name]["points"]
        sizes = [int(size) for size in points]
        right = ax.twinx() if any("bytes" in point for point in points.values()) else None
        for key in dict.fromkeys(key for point in points.values() for key in point):
            values = [point[key] for point in points.values()]
            if key == "bytes":
                assert right is not None
                right.plot(sizes, [value / 2**20 for value in values], "s--", color="tab:orange")
                right.set(yscale="log", ylabel="memory, MiB (dashed)")
            else:
                ax.plot(sizes, values, "o-", label=key)
        ax.set(xscale="log", yscale="log", xlabel=unit, ylabel="processor time, s", title=name)
        ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
        ax.minorticks_off()
        for axis in (ax, right):
            if axis is not None:
                span_a_decade(axis)
        ax.grid(alpha=0.3)
        if len(points[str(sizes[0])]) > 1 and right is None:
            ax.legend()
    figure.savefig(path, dpi=110)


def span_a_decade(ax: Axes) -> None:
    """Let the logarithmic vertical axis span a factor of at least ten, so that small differences look small."""
    low, high = ax.get_ylim()
    margin = max(1.0, (10 * low / high) ** 0.5)
    ax.set_ylim(low / margin, high * margin)
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_locator(NullLocator())


if __name__ == "__main__":
    command.run(main)
