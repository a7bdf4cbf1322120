"""Compare an exported ONNX model with JAX: size, time of export, loading and one window, and greatest difference.

```
python -m benchmarks.export tiny vit_s vit_l --out=export.json
```

Needs the extra `export` and `onnxruntime`. The weights are random, or those of the files given, such as
`runs/blue_marble/model.safetensors`.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
from PIL import Image

from benchmarks.checkpoint import write_checkpoint
from benchmarks.workers import ROOT
from crossearth_jax.config import ModelConfig, ReinsConfig, ViTConfig
from crossearth_jax.exporting.interface import class_probabilities
from crossearth_jax.exporting.onnx_file import write_onnx
from crossearth_jax.inference.segmentor import Segmentor, load
from crossearth_jax.models.mask2former import Mask2FormerHead
from crossearth_jax.models.network import Params, SegmentationModel
from crossearth_jax.ops.normalization import normalize
from crossearth_jax.weights.load import load_weights
from crossearth_jax.weights.native import Description

MODELS = {
    "tiny": ModelConfig(
        vit=ViTConfig(image_size=64, width=64, depth=4, heads=4, mlp_width=256, feature_blocks=(0, 1, 2, 3)),
        reins=ReinsConfig(tokens=8, rank=4),
    ),
    "vit_s": ModelConfig(vit=ViTConfig(width=384, depth=12, heads=6, mlp_width=1536, feature_blocks=(2, 5, 8, 11))),
    "vit_l": ModelConfig(),
}


def random_segmentor(config: ModelConfig) -> Segmentor:
    """Return a model with random weights that predicts several classes on `image`.

    With random weights all queries have almost the same scores, and so have all pixels. So the means of the pixel
    features and of the class logits are moved to 0, and the deviations of the logits are made as large as those of a
    trained model: pixels choose queries, and queries choose classes.
    """
    model, window = SegmentationModel(config), config.vit.image_size
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        write_checkpoint(path, config)
        read = load_weights(path, config=config).params
        params = {name: jnp.array(read[name]) for name in model.shapes()}
    pixels = jnp.asarray(image(window).transpose(0, 2, 3, 1))

    @jax.jit
    def outputs(params: Params) -> tuple[jax.Array, jax.Array, jax.Array]:
        features, network = model.features(params, pixels, for_head_only=True), model.network(params)
        assert isinstance(network.head, Mask2FormerHead)
        return network.head.pixel_decoder(features.levels).masks, *network.head.final(features, network.encoder)

    params["head/pixel_decoder/mask_feature/bias"] -= outputs(params)[0].mean((0, 1, 2))
    _, classes, masks = outputs(params)
    params["head/mask_decoder/class_head/bias"] -= classes.mean((0, 1))
    for layer, factor in (("class_head", 6 / classes.std(1).mean()), ("mask_head/2", 10 / masks.std())):
        for name in ("kernel", "bias"):
            params[f"head/mask_decoder/{layer}/{name}"] *= factor
    return Segmentor(model, params, Description(model=config, window=window, stride=round(window * 2 / 3)))


def image(side: int) -> np.ndarray:
    """Return a real image (1, 3, side, side) as the network's input."""
    path = ROOT / "data/dubai_sample/image/t1_001.jpg"
    pixels = np.asarray(Image.open(path).convert("RGB").resize((side, side)))[None]
    return np.asarray(normalize(jnp.asarray(pixels))).transpose(0, 3, 1, 2)


def measure(segmentor: Segmentor, folder: Path, rounds: int) -> dict[str, Any]:
    """Export a model and run it on a window of a real image beside JAX, in alternating rounds."""
    path, result = folder / "model.onnx", {}
    result["export_seconds"] = seconds(lambda: write_onnx(path, segmentor))
    result["bytes"] = sum(file.stat().st_size for file in folder.iterdir())
    loaded: list[onnxruntime.InferenceSession] = []
    result["load_seconds"] = seconds(
        lambda: loaded.append(onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]))
    )
    images = image(segmentor.window)
    compiled = jax.jit(lambda params, images: class_probabilities(replace(segmentor, params=params), images))
    run = functools.partial(compiled, segmentor.params)
    expected = np.asarray(run(images))
    result |= {"range": float(np.ptp(expected)), "classes_seen": len(np.unique(expected.argmax(1)))}
    # How far rounding alone takes the numbers: Mask2Former's attention masks are thresholds, so it may take them far.
    found = {
        "onnx": loaded[0].run(None, {"input": images})[0],
        "jax_with_noise": compiled(with_noise(segmentor.params), images),
    }
    for name, values in found.items():
        values = np.asarray(values)
        result[f"{name}_greatest_difference"] = float(np.abs(values - expected).max())
        result[f"{name}_equal_classes"] = float((values.argmax(1) == expected.argmax(1)).mean())
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(seconds(lambda: run(images).block_until_ready()))
        theirs.append(seconds(lambda: loaded[0].run(None, {"input": images})))
    return result | {"jax_seconds": ours, "onnx_seconds": theirs}


def with_noise(params: Mapping[str, jax.Array]) -> Params:
    """Change every weight by about a millionth of its value."""
    rng = np.random.default_rng(0)
    return {name: x * (1 + 1e-6 * rng.standard_normal(x.shape, np.float32)) for name, x in params.items()}


def seconds(work: Callable[[], object]) -> float:
    """Return the time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measure the models that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help=f"{', '.join(MODELS)}, or weights files of trained models")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of a window")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    facts = {"jax": jax.__version__, "onnxruntime": onnxruntime.__version__, "processors": os.cpu_count()}
    results: dict[str, Any] = {"facts": facts}
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            segmentor = random_segmentor(MODELS[name]) if name in MODELS else load(name)
            results[name] = measure(segmentor, Path(folder), arguments.rounds)
        print(name, json.dumps(results[name]))
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
