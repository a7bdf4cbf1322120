"""Compare this implementation with the reference's golden numbers: `python -m benchmarks.torch_reference.check`."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import torch

from benchmarks.torch_reference.mim import TaskHead
from benchmarks.torch_reference.model import CrossEarth

GOLDEN = pathlib.Path(__file__).parents[2] / "tests" / "golden" / "tiny"
TRAINING = GOLDEN.with_name("train")


def main() -> None:
    """Compare scores, class and mask logits, and reconstructions of all stored inputs."""
    check_segmentation()
    check_reconstruction()


def hold(name: str, found: torch.Tensor, golden: np.ndarray, noise: float) -> None:
    """Print the largest difference; exit if it exceeds five times the reference's floating-point noise."""
    error = np.abs(found.numpy() - golden).max()
    print(f"{name}: {error:.1e} (bar {5 * noise:.1e})")
    if error > 5 * noise:
        raise SystemExit("beyond the bar")


def check_segmentation() -> None:
    """Compare scores, class logits and mask logits."""
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
            hold(f"{case}/{name}", value, golden[name], float(noise[f"{case}/{name}"]))


def check_reconstruction() -> None:
    """Compare the image that the reconstruction head computes from the backbone's features."""
    tensors = {name.removeprefix("task_head."): x for name, x in np.load(TRAINING / "mim_params.npz").items()}
    head = TaskHead(64, {"width": 32, "image_size": 64, "dilations": [1, 6, 12, 18]})
    head.load_state_dict({name: torch.as_tensor(x) for name, x in tensors.items()})
    features = np.load(GOLDEN / "forward.npz")
    with torch.inference_mode():
        found = head([torch.as_tensor(features[f"feat{i}"]) for i in range(4)])
    noise = json.loads((TRAINING / "mim_noise.json").read_text())
    golden = np.load(TRAINING / "mim_masked_only.npz")["prediction"]
    hold("mim_masked_only/prediction", found, golden, float(noise["mim_masked_only/prediction"]["max_abs"]))


if __name__ == "__main__":
    main()
