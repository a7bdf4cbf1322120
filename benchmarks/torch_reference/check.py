"""Holds the restatement to the reference's golden numbers: `python -m benchmarks.torch_reference.check`."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import torch

from benchmarks.torch_reference.model import CrossEarth

GOLDEN = pathlib.Path(__file__).parents[2] / "tests" / "golden" / "tiny"


def main() -> None:
    """Compares scores and mask logits of all stored inputs; fails beyond five times the reference's noise."""
    model = CrossEarth(json.loads((GOLDEN / "model.json").read_text()))
    model.load_state_dict({name: torch.as_tensor(x) for name, x in np.load(GOLDEN / "params.npz").items()})
    noise = json.loads((GOLDEN / "float32_noise.json").read_text())
    for case in ("forward", "forward_nonsquare", "forward_odd"):
        golden = np.load(GOLDEN / f"{case}.npz")
        with torch.inference_mode():
            images = torch.as_tensor(golden["input"])
            found = {"seg_logits": model.scores(images)}
            classes, masks = model(images)
        found |= {f"cls_pred{i}": x for i, x in enumerate(classes)} | {f"mask_pred{i}": x for i, x in enumerate(masks)}
        for name, value in found.items():
            error, bar = np.abs(value.numpy() - golden[name]).max(), 5 * float(noise[f"{case}/{name}"])
            print(f"{case}/{name}: {error:.1e} (bar {bar:.1e})")
            if error > bar:
                raise SystemExit("beyond the bar")


if __name__ == "__main__":
    main()
