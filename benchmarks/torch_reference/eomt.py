"""Write golden numbers of EoMT, computed by Hugging Face's implementation, for `tests/models/eomt_test.py`.

    python -m benchmarks.torch_reference.eomt

It needs torch and transformers (written with transformers 5.x). The model is small and has random weights and no
register tokens. Weights and images are rounded to float16, in which they are stored, and the model computes with the
rounded values in float32.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import torch
from transformers import EomtConfig, EomtForUniversalSegmentation

GOLDEN = pathlib.Path(__file__).parents[2] / "tests" / "golden" / "eomt.npz"


def main() -> None:
    """Compute the predictions before each of the last blocks and after them, and those without attention masks."""
    config = EomtConfig(
        image_size=64,
        patch_size=16,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        mlp_ratio=1,
        num_blocks=2,
        num_queries=4,
        num_register_tokens=0,
        num_labels=3,
    )
    model = EomtForUniversalSegmentation(config).eval()
    random = torch.Generator().manual_seed(0)
    state = {name: _filled(name, x, random) for name, x in model.state_dict().items() if x.is_floating_point()}
    model.load_state_dict(state, strict=False)
    images = torch.randn((2, 3, 64, 64), generator=random).half().float()
    stored = {f"weights/{name}": x.numpy().astype(np.float16) for name, x in state.items() if "criterion" not in name}
    del stored["weights/attn_mask_probs"]
    stored["images"] = images.numpy().astype(np.float16)
    for name, probability in (("masked", 1.0), ("free", 0.0)):
        model.attn_mask_probs.fill_(probability)
        predictions = _predictions(model, images)
        stored[f"{name}/masks"] = np.stack([masks for masks, _ in predictions])
        stored[f"{name}/classes"] = np.stack([classes for _, classes in predictions])
    np.savez_compressed(GOLDEN, **stored)
    print(GOLDEN, GOLDEN.stat().st_size)


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
