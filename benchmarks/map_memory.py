"""Measure peak memory and time of maps of several sizes with a tiny network: memory must not grow with the scene.

```
python benchmarks/map_memory.py 5000 20000
```

Needs the extra `geo`.

For each size it writes a scene (16-bit, four bands, tiled), maps it with `python -m crossearth_jax.predict` in a
separate process and prints its peak resident memory. The network is tiny, so mostly reading, blending and
writing are measured. Results of an earlier version of the code, with windows of 512 pixels and six classes, on two CPU
cores that also ran other work:

| scene | peak resident memory | time |
|---|---|---|
| 1,000 x 1,000 | 767 MiB | (start and compilation) |
| 5,000 x 5,000 | 1,204 MiB | 99 s |
| 20,000 x 20,000 | 1,343 MiB | 339 s |

Up to 5,400 columns, the running sum of a row of windows grows with the scene, and so does the use of GDAL's block cache
(at most 256 MiB).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import rasterio
from rasterio.transform import Affine
from rasterio.windows import Window

from crossearth_jax.config import HeadConfig, ModelConfig, ReinsConfig, ViTConfig
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.weights.native import Description, save_native

MODEL = ModelConfig(
    classes=6,
    vit=ViTConfig(image_size=512, patch_size=16, width=16, depth=4, heads=1, mlp_width=16, feature_blocks=(0, 1, 2, 3)),
    reins=ReinsConfig(tokens=4, rank=2),
    head=HeadConfig(width=8, heads=1, groups=2, encoder_layers=1, encoder_mlp_width=8, points=1, decoder_layers=1,
                    decoder_mlp_width=8),
)  # fmt: skip
BLOCK = 512


def write_model(folder: Path) -> None:
    """Write a network with random weights."""
    params = jax.jit(SegmentationModel(MODEL).init)(jax.random.key(0))
    save_native(folder / "tiny.safetensors", params, Description(model=MODEL, class_names=tuple("abcdef")))


def write_scene(path: Path, side: int) -> None:
    """Write a scene of noise and a coarse pattern; every block is the same, which is fast to write."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(200, 3000, (4, 8, 8)).repeat(BLOCK // 8, 1).repeat(BLOCK // 8, 2)
    block = (coarse + rng.integers(0, 100, (4, BLOCK, BLOCK))).astype(np.uint16)
    profile = {"driver": "GTiff", "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "bigtiff": "IF_SAFER"}
    place = {"crs": "EPSG:32618", "transform": Affine(0.5, 0, 500_000, 0, -0.5, 4_000_000)}
    with rasterio.open(path, "w", width=side, height=side, count=4, dtype="uint16", **profile, **place) as dataset:
        dataset.descriptions = ("blue", "green", "red", "nir")
        for top in range(0, side, BLOCK):
            for left in range(0, side, BLOCK):
                height, width = min(BLOCK, side - top), min(BLOCK, side - left)
                dataset.write(block[:, :height, :width], window=Window(left, top, width, height))  # pyright: ignore[reportCallIssue]


def measure(folder: Path, side: int, options: list[str]) -> dict[str, float]:
    """Map one scene; return the time (also of the processor) in seconds and the peak resident memory in bytes."""
    scene, out = folder / f"scene_{side}.tif", folder / f"map_{side}.tif"
    write_scene(scene, side)
    command = [sys.executable, "-m", "crossearth_jax.predict", f"--checkpoint={folder}/tiny.safetensors", str(scene),
               f"--out={out}", "--bands=nir,red,green", *options]  # fmt: skip
    start = time.monotonic()
    process = os.posix_spawn(sys.executable, command, os.environ)
    _, status, usage = os.wait4(process, 0)
    seconds = time.monotonic() - start
    if status:
        raise SystemExit(f"the command failed with status {status}")
    scene.unlink()
    out.unlink()
    processor = usage.ru_utime + usage.ru_stime
    return {
        "seconds": seconds,
        "cpu_seconds": processor,
        "bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def main() -> None:
    """Measure every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sides", nargs="+", type=int, metavar="SIDE", help="pixels")
    parser.add_argument("--folder", help="where the scenes are written; 20000 pixels take 4 GB (default: temporary)")
    arguments, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        write_model(Path(folder))
        for side in arguments.sides:
            found = measure(Path(folder), side, options)
            print(
                f"{side} x {side}: peak {found['bytes'] / 2**20:.0f} MiB resident, {found['seconds']:.0f} s, "
                f"{side * side / found['seconds'] / 1e6:.2f} Mpixel/s"
            )


if __name__ == "__main__":
    main()
