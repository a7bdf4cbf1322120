"""Resizing compared exactly with golden numbers of OpenCV, and the identity."""

import json
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossearth_jax.augment import geometric
from crossearth_jax.config import AugmentConfig
from crossearth_jax.ops import opencv_resize

GOLDEN = pathlib.Path(__file__).parents[1] / "golden/train"
FACTS = json.loads((GOLDEN / "resize.json").read_text())
ARRAYS = np.load(GOLDEN / "resize.npz")
SIZES = geometric.resized_sizes(AugmentConfig(crop_size=96), 96, 128)


@jax.jit
def resize_all(image, label, scale):
    """Resize to the size of the scale; positions beyond it repeat the last one."""
    axes = []
    for length, sizes in zip(label.shape, zip(*SIZES, strict=True), strict=True):
        positions = jnp.minimum(jnp.arange(max(sizes)), jnp.asarray(sizes)[scale] - 1)
        axes.append((opencv_resize.axis_tables(length, sizes), positions))
    return opencv_resize.sample_bilinear(image, scale, *axes), opencv_resize.sample_nearest(label, scale, *axes)


@pytest.mark.parametrize("case", FACTS["pixels_case"], ids=lambda case: str(case["short"]))
def test_every_scale_equals_opencv(case):
    index, (height, width) = case["index"], case["out"]
    assert SIZES[index] == (height, width)
    image, label = resize_all(ARRAYS["img"], ARRAYS["gt"], jnp.asarray(index))
    image, label = np.asarray(image)[:height, :width], np.asarray(label)[:height, :width]
    assert int(image.sum(dtype=np.int64)) == case["img_sum"]
    assert zlib.crc32(label.tobytes()) == case["gt_crc32"]
    if f"s{index}.img" in ARRAYS:
        np.testing.assert_array_equal(image, ARRAYS[f"s{index}.img"])
        np.testing.assert_array_equal(label, ARRAYS[f"s{index}.gt"])


@pytest.mark.parametrize("case", FACTS["sizes"], ids=lambda case: f"{case['crop']}-{case['in_hw']}")
def test_sizes_equal_the_reference(case):
    sizes = geometric.resized_sizes(AugmentConfig(crop_size=case["crop"]), *case["in_hw"])
    assert [list(size) for size in sizes] == case["out_hw"]


def test_same_size_is_the_identity():
    tables = opencv_resize.axis_tables(17, (17,))
    np.testing.assert_array_equal(tables.nearest[0], np.arange(17))
    np.testing.assert_array_equal(tables.low_weight[0], opencv_resize.WEIGHT_ONE)


def test_box_weights_count_the_nearest_samples():
    sizes = (5, 9, 13, 30)
    tables = opencv_resize.axis_tables(13, sizes)
    for scale, size in enumerate(sizes):
        starts, length = np.array([0, 1, size - 4]), 4
        expected = [np.bincount(tables.nearest[scale, start : start + length], minlength=13) for start in starts]
        weights = opencv_resize.box_weights(tables, jnp.asarray(scale), jnp.asarray(starts), jnp.asarray(length))
        np.testing.assert_array_equal(weights, expected)
