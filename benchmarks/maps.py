"""Measure maps and evaluation: alone and beside the time of their network. Needs the extra `geo`."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
import time

import jax
import numpy as np
import rasterio

from benchmarks import workers
from benchmarks.network import Options, Result
from benchmarks.sizes import SIZES
from crossearth_jax.benchmark.registry import find_domain
from crossearth_jax.config import MeshConfig
from crossearth_jax.inference.domains import score_domain
from crossearth_jax.inference.segmentor import score_on_devices
from crossearth_jax.inference.windows import SlidingWindows
from crossearth_jax.mapping.map_layers import Legend
from crossearth_jax.mapping.mapper import map_scene
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.prepare import prepare_file
from crossearth_jax.runtime import parallel


def score_first_channel(images: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Replace the network by a function that takes almost no time."""
    return np.stack([(images[..., 0] >> 5 == i).astype(np.float32) for i in range(6)], axis=-1)


def write_scene(path: pathlib.Path, side: int) -> None:
    """Write an 8-bit RGB scene of noise."""
    profile = {"driver": "GTiff", "width": side, "height": side, "count": 3, "dtype": "uint8", "tiled": True}
    with rasterio.open(path, "w", **profile, crs="EPSG:32633", transform=rasterio.Affine.scale(1, -1)) as file:
        file.write(np.random.default_rng(0).integers(0, 256, (3, side, side), np.uint8))


def predict(options: Options) -> Result:
    """Return the megapixels per second of a map without a network, and the size of the scene."""
    side = 4096 if options.size == "vit_l" else 600
    windows = SlidingWindows(score=score_first_channel, classes=6, window=512, stride=341, multiple=16)
    legend = Legend(tuple("abcdef"), tuple((40 * i, 0, 0) for i in range(6)))
    rates = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        scene = pathlib.Path(folder) / "scene.tif"
        write_scene(scene, side)
        for _ in range(options.rounds):
            before = time.perf_counter()
            map_scene(windows, legend, str(scene), pathlib.Path(folder) / "map.tif")
            rates.append(side * side / 1e6 / (time.perf_counter() - before))
    return {"megapixels_per_second_without_network": workers.spread(rates), "scene": [side, side]}


def busy(options: Options) -> Result:
    """Compare a map and an evaluation with the time that their network alone takes for the same windows.

    Reading, decoding, blending, scoring and writing are what comes on top.
    """
    size = SIZES[options.size]
    file = prepare_file(workers.ROOT / "data/dubai_sample/domains.toml", options.scratch / "data", ["inland"])
    domain = find_domain(file.find(["inland"])[0].key, str(options.scratch / "data"))
    names = domain.classes
    model = SegmentationModel(dataclasses.replace(size.model, mim=None, classes=len(names)))
    params = jax.jit(model.init)(jax.random.key(0))
    score = score_on_devices(model, params, parallel.make_mesh(MeshConfig(), jax.devices()), flips=False)
    seen: list[tuple[np.ndarray, np.ndarray]] = []  # the batches of windows

    def recorded(images: np.ndarray, valid: np.ndarray) -> jax.Array:
        seen.append((images, valid))
        return score(images, valid)

    def network() -> None:
        for batch in seen:
            jax.device_get(score(*batch))

    windows = SlidingWindows(
        score=recorded, classes=len(names), window=size.image, stride=size.image * 2 // 3, multiple=16, batch_size=1
    )
    legend = Legend(names, tuple((40 * i, 0, 0) for i in range(len(names))))
    result: Result = {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        scene = pathlib.Path(folder) / "scene.tif"
        write_scene(scene, 2 * size.image)
        tasks = {
            "map": lambda: map_scene(windows, legend, str(scene), pathlib.Path(folder) / "map.tif"),
            "evaluation": lambda: score_domain(windows, domain, "test", str(options.scratch / "data"), examples=0),
        }
        for name, task in tasks.items():
            shares = []
            for number in range(options.rounds + 1):  # the first compiles
                seen.clear()
                whole = workers.timed(task)["seconds"]
                if number:
                    shares.append(whole / workers.timed(network)["seconds"])
            result[name] = {"windows": len(seen), "ratio_to_network": workers.spread(shares)}
    return result
