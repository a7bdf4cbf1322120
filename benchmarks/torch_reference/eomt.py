"""Write golden numbers of EoMT, computed by Hugging Face's implementation, for `tests/models/eomt_test.py`.

    python -m benchmarks.torch_reference.eomt

It needs torch and transformers (written with transformers 5.x). The models are small and have random weights: one has
the blocks and the position table of DINOv2, the other the rotary positions and register tokens of DINOv3. Weights and
images are rounded to float16, in which they are stored, and the models compute with the rounded values in float32.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import torch
from transformers import (
    EomtConfig,
    EomtDinov3Config,
    EomtDinov3ForUniversalSegmentation,
    EomtForUniversalSegmentation,
)

GOLDEN = pathlib.Path(__file__).parents[2] / "tests" / "golden"
SIZES = {
    "image_size": 64, "patch_size": 16, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_blocks": 2, "num_queries": 4, "num_labels": 3,
}  # fmt: skip


def main() -> None:
    """Write the numbers of both models."""
    _write("eomt", EomtForUniversalSegmentation(EomtConfig(**SIZES, mlp_ratio=1, num_register_tokens=0)))
    dinov3 = EomtDinov3Config(**SIZES, intermediate_size=16, num_register_tokens=2)
    _write("eomt_dinov3", EomtDinov3ForUniversalSegmentation(dinov3))


def _write(name: str, model: Any) -> None:
    """Write the predictions before each of the last blocks and after them, and those without attention masks."""
    model.eval()
    random = torch.Generator().manual_seed(0)
    state = {key: _filled(key, x, random) for key, x in model.state_dict().items() if x.is_floating_point()}
    model.load_state_dict(state, strict=False)
    images = torch.randn((2, 3, 64, 64), generator=random).half().float()
    stored = {f"weights/{key}": x.numpy().astype(np.float16) for key, x in state.items() if "criterion" not in key}
    del stored["weights/attn_mask_probs"]
    stored["images"] = images.numpy().astype(np.float16)
    for case, probability in (("masked", 1.0), ("free", 0.0)):
        model.attn_mask_probs.fill_(probability)
        predictions = _predictions(model, images)
        stored[f"{case}/masks"] = np.stack([masks for masks, _ in predictions])
        stored[f"{case}/classes"] = np.stack([classes for _, classes in predictions])
    np.savez_compressed(GOLDEN / f"{name}.npz", **stored)


def _filled(name: str, x: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Return random weights of the shape of `x`; gains and scales are near 1."""
    offset = 1.0 if ("norm" in name and name.endswith("weight")) or "lambda" in name else 0.0
    return (offset + 0.3 * torch.randn(x.shape, generator=random)).half().float()


def _predictions(model: Any, images: torch.Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return mask and class logits of every call of `predict` in a forward pass."""
    found, predict = [], type(model).predict

    def recorded(tokens: torch.Tensor) -> Any:
        result = predict(model, tokens)
        found.append(tuple(x.numpy() for x in result))
        return result

    model.predict = recorded
    with torch.inference_mode():
        model(images)
    return found


if __name__ == "__main__":
    main()
