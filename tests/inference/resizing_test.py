"""Sizes worked out by hand; pixels and classes compared with the reference."""

import json
from pathlib import Path

import numpy as np
import pytest

from crossearth_jax.benchmark import Resize
from crossearth_jax.inference import resizing

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize(
    ("size", "resize", "expected"),
    [
        ((3000, 4000), Resize(box=(512, 512)), (384, 512)),  # RescueNet
        ((4000, 3000), Resize(box=(512, 512)), (512, 384)),
        ((512, 512), Resize(box=(512, 512)), (512, 512)),
        ((1500, 1500), Resize(box=(1500, 1500)), (1500, 1500)),
        ((1000, 1000), Resize(box=(1024, 1024)), (1024, 1024)),  # CASID: a smaller image grows
        ((1000, 900), Resize(box=(1024, 1024)), (1024, 922)),  # 921.6
        ((1000, 900), Resize(box=(1024, 1024), keep_ratio=False), (1024, 1024)),  # its temperate tiles
        ((100, 400), Resize(box=(200, 100)), (50, 200)),  # the box is turned
        ((70, 33), None, (70, 33)),
    ],
)
def test_fitted_size_by_hand(size, resize, expected):
    assert resizing.fitted_size(size, resize) == expected


@pytest.mark.parametrize("index", [0, 3, 6, 15])
def test_resized_images_equal_opencv(index):
    arrays = np.load(GOLDEN / "train" / "resize.npz")
    (case,) = [c for c in json.loads((GOLDEN / "train/resize.json").read_text())["pixels_case"] if c["index"] == index]
    box = Resize(box=tuple(case["out"]), keep_ratio=False)
    np.testing.assert_array_equal(resizing.resized_image(arrays["img"], box), arrays[f"s{index}.img"])


@pytest.mark.parametrize("strip", [7, 36, 256])
def test_classes_at_the_original_size_equal_the_reference(monkeypatch, strip):
    monkeypatch.setattr(resizing, "STRIP", strip)
    golden = np.load(GOLDEN / "tiny" / "slide_small.npz")
    resizing._best_classes.clear_cache()
    scores = np.moveaxis(golden["seg_logits"], 1, -1)
    for found, expected in zip(scores, golden["post_argmax"], strict=True):
        np.testing.assert_array_equal(resizing.best_classes(found, (72, 195))[0], expected)
