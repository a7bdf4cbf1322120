"""Backbones with random weights as transformers computes them: the PyTorch side of `benchmarks.backbones`.

    python -m benchmarks.torch_reference.backbones FOLDER [--size=vit_s]

Writes one safetensors file per backbone: the weights under the names of transformers' model, an image
(`expected.image`) and the tokens after every block (`expected.states`). Needs torch and transformers 5.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
)

SIZES = {
    "tiny": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    "vit_s": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
}
MLP_RATIO = {"tiny": 2, "vit_s": 4}


def dinov3(size: str, gated: bool) -> Any:
    """Build DINOv3 with a plain MLP, or with a gated one as in ViT-S+. Patches have 16 pixels, in the tiny model 4."""
    sizes = {**SIZES[size], "intermediate_size": MLP_RATIO[size] * SIZES[size]["hidden_size"]}
    sizes |= {"num_register_tokens": 4, "patch_size": 16 if size == "vit_s" else 4}
    return DINOv3ViTModel(DINOv3ViTConfig(**sizes, use_gated_mlp=gated, hidden_act="silu" if gated else "gelu"))


def dinov2(size: str, registers: bool) -> Any:
    """Build DINOv2 with patches of 14 pixels and 37 x 37 positions, in the tiny model 5 x 5.

    The tiny model with registers has patches of 4 pixels.
    """
    patch, side = (14 if size == "vit_s" or not registers else 4), (37 if size == "vit_s" else 5)
    sizes = {**SIZES[size], "mlp_ratio": MLP_RATIO[size], "patch_size": patch, "image_size": side * patch}
    if registers:
        return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes))
    model = Dinov2Model(Dinov2Config(**sizes))

    # transformers resizes by exact factors. Meta's code, which this package follows, adds 0.1 to the new size.
    def resized(_: torch.Tensor, height: int, width: int) -> torch.Tensor:
        table = model.embeddings.position_embeddings
        side = round((table.shape[1] - 1) ** 0.5)
        grid = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        factors = ((height // 14 + 0.1) / side, (width // 14 + 0.1) / side)
        grid = F.interpolate(grid, scale_factor=factors, mode="bicubic", align_corners=False)
        return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)

    model.embeddings.interpolate_pos_encoding = resized
    return model


CASES = {
    "dinov3": lambda size: dinov3(size, gated=False),
    "dinov3_gated": lambda size: dinov3(size, gated=True),
    "dinov2_registers": lambda size: dinov2(size, registers=True),
    "dinov2_patch14": lambda size: dinov2(size, registers=False),
}


def randomise(model: Any) -> None:
    """Draw parameters with which every part of the network matters and values stay of the order of 1."""
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter)
        if "norm" in name and name.endswith("weight"):
            parameter.copy_(1 + 0.2 * noise)
        elif "lambda1" in name:
            parameter.copy_(0.5 + 0.1 * noise)
        elif name.endswith("bias"):
            parameter.copy_(0.2 * noise)
        elif "embeddings." in name and "projection" not in name and "patch_embeddings" not in name:
            parameter.copy_(noise)  # tokens and positions
        else:
            parameter.copy_(noise * parameter[0].numel() ** -0.5)


@torch.no_grad()
def run(name: str, size: str) -> dict[str, torch.Tensor]:
    """Return the weights of a backbone, an image, and the tokens after every block."""
    model = CASES[name](size).eval()
    randomise(model)
    states: list[torch.Tensor] = []
    blocks = model.model.layer if "dinov3" in name else model.encoder.layer
    for block in blocks:
        block.register_forward_hook(lambda _, __, output: states.append(output))
    patch = model.config.patch_size
    rows, columns = (14, 20) if size == "vit_s" else (2, 4) if patch == 14 else (4, 6)
    image = torch.randn(1, 3, patch * rows, patch * columns)
    model(image)
    found = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    return found | {"expected.image": image, "expected.states": torch.stack(states)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--size", choices=sorted(SIZES), default="vit_s")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        torch.manual_seed(0)
        save_file(run(case, arguments.size), arguments.folder / f"{case}.safetensors")
