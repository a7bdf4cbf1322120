"""Compare an exported ONNX model with JAX: size, time of export, loading and one window, and greatest difference.

```
python -m benchmarks.export vit_s vit_l --out=export.json
```

Needs the extra `export` and `onnxruntime`. The weights are random. Noise is added to all of them, so that no parameter
is zero or constant and every branch of the network has an effect.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnxruntime

from crossearth_jax.config import ModelConfig, ReinsConfig, ViTConfig
from crossearth_jax.exporting.interface import class_probabilities
from crossearth_jax.exporting.onnx_file import write_onnx
from crossearth_jax.inference.segmentor import Segmentor
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.weights.native import Description

MODELS = {
    "tiny": ModelConfig(
        vit=ViTConfig(image_size=64, width=64, depth=4, heads=4, mlp_width=256, feature_blocks=(0, 1, 2, 3)),
        reins=ReinsConfig(tokens=8, rank=4),
    ),
    "vit_s": ModelConfig(vit=ViTConfig(width=384, depth=12, heads=6, mlp_width=1536, feature_blocks=(2, 5, 8, 11))),
    "vit_l": ModelConfig(),
}


def measure(config: ModelConfig, folder: Path, rounds: int) -> dict[str, Any]:
    """Export a model with random weights and run it on random images beside JAX, in alternating rounds."""
    model, window = SegmentationModel(config), config.vit.image_size
    params = disturbed(jax.jit(model.init)(jax.random.key(0)))
    segmentor = Segmentor(model, params, Description(model=config, window=window, stride=round(window * 2 / 3)))
    path, result = folder / "model.onnx", {}
    result["export_seconds"] = seconds(lambda: write_onnx(path, segmentor))
    result["bytes"] = sum(file.stat().st_size for file in folder.iterdir())
    loaded: list[onnxruntime.InferenceSession] = []
    result["load_seconds"] = seconds(
        lambda: loaded.append(onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]))
    )
    images = np.random.default_rng(0).standard_normal((1, 3, window, window)).astype(np.float32)
    compiled = jax.jit(lambda images: class_probabilities(segmentor, images))
    expected = np.asarray(compiled(images))
    found = np.asarray(loaded[0].run(None, {"input": images})[0])
    result["range"] = float(np.ptp(expected))
    result["greatest_difference"] = float(np.abs(found - expected).max())
    result["equal_classes"] = float((found.argmax(1) == expected.argmax(1)).mean())
    result["classes_seen"] = len(np.unique(expected.argmax(1)))
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(seconds(lambda: compiled(images).block_until_ready()))
        theirs.append(seconds(lambda: loaded[0].run(None, {"input": images})))
    return result | {"jax_seconds": ours, "onnx_seconds": theirs}


def disturbed(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Add normal noise to all parameters, for kernels relative to their number of inputs."""
    rng = np.random.default_rng(0)
    return {
        name: value + 0.5 * max(np.prod(value.shape[-2:-1]), 16) ** -0.5 * rng.standard_normal(value.shape, np.float32)
        for name, value in params.items()
    }


def seconds(work: Callable[[], object]) -> float:
    """Return the time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measure the models that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=MODELS)
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of a window")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    facts = {"jax": jax.__version__, "onnxruntime": onnxruntime.__version__, "processors": os.cpu_count()}
    results: dict[str, Any] = {"facts": facts}
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure(MODELS[name], Path(folder), arguments.rounds)
        print(name, json.dumps(results[name]))
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
