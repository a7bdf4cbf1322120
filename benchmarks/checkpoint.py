"""Write a CrossEarth checkpoint with random weights in the format of the published files.

`python -m benchmarks.checkpoint OUT.pth [--size=tiny]`

The seed of each tensor is derived from its name, so the file is the same on every machine. PyTorch is not needed. The
weights are large enough that each part of the network affects the scores (LayerScale 0.3, Reins scale 0.1, sampling
offsets of a few pixels) and small enough that activations keep their magnitude through 24 blocks. The model is not
trained.
"""

from __future__ import annotations

import argparse
import math
import zlib
from pathlib import Path

import numpy as np

from benchmarks.sizes import SIZES
from crossearth_jax.config import ModelConfig, to_config_dict
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.runtime import command
from crossearth_jax.weights.reference_names import to_reference
from crossearth_jax.weights.torch_writer import write_torch_zip

# End of a tensor name, mean, standard deviation (None: 1 / sqrt(fan in)). The first matching row is used.
_RULES: tuple[tuple[str, float, float | None], ...] = (
    (".gamma", 0.3, 0.05),
    ("reins.scale", 0.1, 0.0),
    ("learnable_tokens_a", 0.0, 0.5),
    ("learnable_tokens_b", 0.0, 0.5),
    ("sampling_offsets.bias", 0.0, 2.0),
    ("cls_token", 0.0, 0.5),
    ("pos_embed", 0.0, 0.5),
    ("mask_token", 0.0, 0.5),
    ("level_embed.weight", 0.0, 0.5),
    ("level_encoding.weight", 0.0, 0.5),
    ("norm.weight", 1.0, 0.1),
    ("norm1.weight", 1.0, 0.1),
    ("norm2.weight", 1.0, 0.1),
    ("gn.weight", 1.0, 0.1),
    ("bias", 0.0, 0.1),
)


def main(argv: list[str]) -> None:
    """Write the file and, beside it, the model's configuration as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint")
    parser.add_argument("out", help="file to write (.pth)")
    parser.add_argument("--size", choices=SIZES, default="vit_l")
    arguments = parser.parse_args(argv)
    write_checkpoint(Path(arguments.out), SIZES[arguments.size].model)


def write_checkpoint(path: Path, config: ModelConfig) -> None:
    """Write the checkpoint `path` and, with the ending .json, the model's configuration."""
    tensors = reference_tensors(config)
    write_torch_zip(path, {"meta": {"seed": 42}, "state_dict": tensors})
    path.with_suffix(".json").write_text(to_config_dict(config).to_json() + "\n", encoding="utf-8")


def reference_tensors(config: ModelConfig) -> dict[str, np.ndarray]:
    """Return random tensors under the reference's names, including those without effect on the scores."""
    width = config.vit.width
    shapes = {name: np.empty(spec.shape, np.float32) for name, spec in SegmentationModel(config).shapes().items()}
    names = {name: np.shape(value) for name, value in to_reference(shapes).items()}
    names |= {
        "backbone.mask_token": (1, width),
        "backbone.norm.weight": (width,),
        "backbone.norm.bias": (width,),
    }
    return {name: draw(name, shape) for name, shape in names.items()}


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the values of one tensor, float32."""
    mean, std = _mean_and_std(name, shape)
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    return np.float32(mean) + np.float32(std) * generator.standard_normal(shape, np.float32)


def _mean_and_std(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    fan_in = math.prod(shape[1:])
    if name.endswith("weight") and ".norms." in name:
        return 1.0, 0.1
    mean, std = next(((mean, std) for ending, mean, std in _RULES if name.endswith(ending)), (0.0, None))
    return mean, fan_in**-0.5 if std is None else std


if __name__ == "__main__":
    command.run(main)
