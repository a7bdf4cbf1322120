"""Compare every kind of backbone with transformers: the greatest difference of the tokens after each block.

    python -m benchmarks.backbones --torch_python=/path/to/torch-venv/bin/python [--size=vit_s]

PyTorch writes random weights and its results (`torch_reference.backbones`). This package loads the weights with its
ordinary reader and computes the same image in float32.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from crossearth_jax.config import ModelConfig, ViTConfig
from crossearth_jax.models.backbones import BACKBONES
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.weights.dino import to_backbone
from crossearth_jax.weights.files import read_tensors
from crossearth_jax.weights.reference_names import from_reference

BOUND = 1e-4
CASES = {  # file of the PyTorch side -> the backbone
    "dinov3": BACKBONES["dinov3_vits16"],
    "dinov3_gated": BACKBONES["dinov3_vits16plus"],
    "dinov2_registers": BACKBONES["dinov2_vits14_reg"],
    "dinov2_patch14": BACKBONES["dinov2_vits14"],
}
TINY = {"width": 16, "depth": 2, "heads": 2, "mlp_width": 32}


def config_of(case: str, size: str) -> ViTConfig:
    """Return the configuration of a backbone of which every block is a feature block."""
    config = CASES[case]
    if size == "tiny":
        patch = 14 if case == "dinov2_patch14" else 4
        config = dataclasses.replace(config, **TINY, patch_size=patch, image_size=5 * patch)
    return dataclasses.replace(config, feature_blocks=tuple(range(config.depth)), remat="none")


def tokens_after_blocks(config: ViTConfig, tensors: dict[str, np.ndarray], images: np.ndarray) -> jax.Array:
    """Load weights of any origin and return the tokens after every block, with class token and registers."""
    model = SegmentationModel(ModelConfig(vit=config, reins=None, head=None))
    params = from_reference(to_backbone(tensors, config.image_size, config.patch_size))
    weights = {name: params[name] for name in model.shapes()}

    @jax.jit
    def run(weights: dict[str, jax.Array], images: jax.Array) -> jax.Array:
        found = model.network(weights).backbone.tokens_after(config.feature_blocks, images)
        flat = [(x.prefix, rearrange(x.patches, "b h w c -> b (h w) c")) for x in found]
        return jnp.stack([jnp.concatenate(tokens, axis=1) for tokens in flat])

    return run(jax.tree.map(jnp.asarray, weights), jnp.asarray(images))


def main() -> None:
    """Run both sides, print the table, and exit with an error if a difference exceeds the bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch_python", required=True, help="interpreter of an environment with torch, transformers")
    parser.add_argument("--size", choices=("tiny", "vit_s"), default="vit_s")
    arguments = parser.parse_args()
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        command = [arguments.torch_python, "-m", "benchmarks.torch_reference.backbones", folder]
        subprocess.run([*command, f"--size={arguments.size}"], check=True, cwd=Path(__file__).parents[1])
        for case in CASES:
            tensors = read_tensors(Path(folder) / f"{case}.safetensors").tensors
            images = rearrange(tensors.pop("expected.image"), "b c h w -> b h w c")
            expected = tensors.pop("expected.states")
            found = np.asarray(tokens_after_blocks(config_of(case, arguments.size), tensors, images))
            differences = np.abs(found - expected).max(axis=(1, 2, 3))
            worst = max(worst, differences.max())
            print(f"{case}: values up to {np.abs(expected).max():.1f}, greatest difference after each block:")
            print("  " + " ".join(f"{difference:.1e}" for difference in differences))
    if worst > BOUND:
        raise SystemExit(f"the greatest difference is {worst:.1e}, expected at most {BOUND:.0e}")


if __name__ == "__main__":
    main()
