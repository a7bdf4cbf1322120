"""Measure maps without a network: reading, blending, writing. Needs the extra `geo`."""

from __future__ import annotations

import pathlib
import tempfile
import time

import numpy as np
import rasterio

from benchmarks import workers
from benchmarks.network import Options, Result
from crossearth_jax.inference.windows import SlidingWindows
from crossearth_jax.mapping.map_layers import Legend
from crossearth_jax.mapping.mapper import map_scene


def score_first_channel(images: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Replace the network by a function that takes almost no time."""
    return np.stack([(images[..., 0] >> 5 == i).astype(np.float32) for i in range(6)], axis=-1)


def predict(options: Options) -> Result:
    """Return the megapixels per second of a map without a network, and the size of the scene."""
    side = 4096 if options.size == "vit_l" else 600
    windows = SlidingWindows(score=score_first_channel, classes=6, window=512, stride=341, multiple=16)
    legend = Legend(tuple("abcdef"), tuple((40 * i, 0, 0) for i in range(6)))
    rates = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        scene = pathlib.Path(folder) / "scene.tif"
        profile = {"driver": "GTiff", "width": side, "height": side, "count": 3, "dtype": "uint8", "tiled": True}
        with rasterio.open(scene, "w", **profile, crs="EPSG:32633", transform=rasterio.Affine.scale(1, -1)) as file:
            file.write(np.random.default_rng(0).integers(0, 256, (3, side, side), np.uint8))
        for _ in range(options.rounds):
            before = time.perf_counter()
            map_scene(windows, legend, str(scene), pathlib.Path(folder) / "map.tif")
            rates.append(side * side / 1e6 / (time.perf_counter() - before))
    return {"megapixels_per_second_without_network": workers.spread(rates), "scene": [side, side]}
