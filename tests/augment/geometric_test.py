"""Geometric augmentation compared exactly with golden numbers of mmsegmentation and with NumPy, and properties."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossearth_jax.augment import geometric
from crossearth_jax.config import AugmentConfig, UserError
from crossearth_jax.ops import opencv_resize

GOLDEN = pathlib.Path(__file__).parents[1] / "golden/train"
CASES = json.loads((GOLDEN / "crop.json").read_text())
ARRAYS = np.load(GOLDEN / "crop.npz")
# The golden crops are from images that are not resized, with short sides of 96 and 40 and a crop of 64.
CONFIGS = {short: AugmentConfig(crop_size=64, scales=(short / 64,)) for short in (96, 40)}


def draws(boxes, scale=0, flip=False, vertical_flip=False):
    return geometric.GeometricDraws(*map(jnp.asarray, (scale, boxes, flip, vertical_flip)))


def offered(case, tries=11):
    """Return the golden offsets, padded to the static number of candidates."""
    offsets = case["offered"][:tries]
    return np.array(offsets + [offsets[-1]] * (tries - len(offsets)))


@functools.cache
def compiled(config):
    return jax.jit(functools.partial(geometric.geometric, config))


@pytest.mark.parametrize("name", CASES)
def test_crop_equals_the_reference(name):
    case, label = CASES[name], ARRAYS[f"{name}.gt"]
    image = ARRAYS[f"{name}.img"] if f"{name}.img" in ARRAYS else np.zeros((*label.shape, 3), np.uint8)
    config = CONFIGS[label.shape[0]]
    assert geometric.resized_sizes(config, *label.shape) == (label.shape,)
    out, out_label, inside = compiled(config)(draws(offered(case)), image, label)
    height, width = case["out_shape"]
    np.testing.assert_array_equal(out_label[:height, :width], ARRAYS[f"{name}.out_gt"])
    assert np.all(np.asarray(out_label)[~np.asarray(inside)] == 255)
    assert int(inside.sum()) == height * width and inside[:height, :width].all()
    if f"{name}.out_img" in ARRAYS:
        np.testing.assert_array_equal(out[:height, :width], ARRAYS[f"{name}.out_img"])


@jax.jit
def count_boxes(boxes, label):
    crop = np.minimum(label.shape, 64)
    weights = [
        opencv_resize.box_weights(opencv_resize.axis_tables(n, (n,)), jnp.asarray(0), boxes[:, i], jnp.asarray(crop[i]))
        for i, n in enumerate(label.shape)
    ]
    return geometric.largest_class(*weights, label)


@pytest.mark.parametrize("name", CASES)
def test_decision_on_every_candidate_equals_the_reference(name):
    case = CASES[name]
    largest, labelled = count_boxes(offered(case), ARRAYS[f"{name}.gt"])
    for i, candidate in enumerate(case["candidates"]):
        assert candidate["offset"] == case["offered"][i]
        counts = candidate["counts"].values()
        assert labelled[i] == sum(counts)
        assert bool(largest[i] < 0.75 * labelled[i]) == candidate["ok"]
        if counts and 2 * max(counts) > sum(counts):
            assert largest[i] == max(counts)


def test_largest_class_of_random_boxes_equals_a_histogram():
    rng = np.random.default_rng(0)
    label = rng.choice([0, 1, 77, 254, 255], p=[0.1, 0.1, 0.5, 0.1, 0.2], size=(12, 20)).astype(np.uint8)
    rows, columns = (rng.integers(0, 3, (40, n)).astype(np.float32) for n in label.shape)
    largest, labelled = jax.jit(geometric.largest_class)(rows, columns, label)
    majorities = 0
    for i in range(40):
        counts = np.bincount(label.ravel(), np.outer(rows[i], columns[i]).ravel(), minlength=256)[:255]
        assert labelled[i] == counts.sum()
        if 2 * counts.max() > counts.sum():
            assert largest[i] == counts.max()
            majorities += 1
        else:
            assert 2 * largest[i] <= counts.sum()
    assert 10 < majorities < 40


@pytest.mark.parametrize("scale", [0, 1])
def test_flips_reverse_the_unpadded_crop(scale):
    rng = np.random.default_rng(1)
    image, label = rng.integers(0, 256, (24, 30, 3), np.uint8), rng.integers(0, 4, (24, 30), np.uint8)
    config = AugmentConfig(crop_size=32, scales=(0.5, 1.3))
    height, width = np.minimum(geometric.resized_sizes(config, 24, 30)[scale], 32)
    boxes = np.full((11, 2), 3 if scale else 0)
    straight = compiled(config)(draws(boxes, scale), image, label)
    across = compiled(config)(draws(boxes, scale, flip=True), image, label)
    down = compiled(config)(draws(boxes, scale, vertical_flip=True), image, label)
    for a, b, c in zip(straight, across, down, strict=True):
        np.testing.assert_array_equal(a[:height, :width], b[:height, :width][:, ::-1])
        np.testing.assert_array_equal(a[:height, :width], c[:height, :width][::-1])
    for a, b in zip(straight[1:], across[1:], strict=True):
        np.testing.assert_array_equal(a[height:], b[height:])
        np.testing.assert_array_equal(a[:, width:], b[:, width:])


def test_draws_cover_scales_and_boxes_uniformly():
    config = AugmentConfig(crop_size=32, scales=(0.5, 1.0, 1.25), vertical_flip=True)
    keys = jax.random.split(jax.random.key(0), 3000)
    drawn = jax.jit(jax.vmap(lambda key: geometric.draw_geometric(config, key, 32, 40)))(keys)
    scale = np.asarray(drawn.scale)
    np.testing.assert_allclose(np.bincount(scale) / 3000, 1 / 3, atol=0.03)
    np.testing.assert_allclose([drawn.flip.mean(), drawn.vertical_flip.mean()], 0.5, atol=0.03)
    assert drawn.boxes.shape[1:] == (11, 2)
    for index, (rows, columns) in enumerate([(1, 1), (1, 9), (9, 19)]):
        boxes = np.asarray(drawn.boxes)[scale == index].reshape(-1, 2)
        for axis, count in enumerate((rows, columns)):
            np.testing.assert_allclose(np.bincount(boxes[:, axis]) * count / len(boxes), 1, atol=0.2)
            assert boxes[:, axis].max() == count - 1


@pytest.mark.parametrize(("longest", "sizes"), [(4.0, ((32, 48), (43, 64))), (8.0, ((32, 48), (64, 96)))])
def test_long_sides_are_bounded(longest, sizes):
    config = AugmentConfig(crop_size=16, scales=(2.0, 4.0), longest=longest)
    assert geometric.resized_sizes(config, 64, 96) == sizes


def test_flips_can_be_switched_off():
    config = AugmentConfig(crop_size=32, flip=False)
    keys = jax.random.split(jax.random.key(0), 20)
    drawn = jax.jit(jax.vmap(lambda key: geometric.draw_geometric(config, key, 32, 32)))(keys)
    assert not drawn.flip.any() and not drawn.vertical_flip.any()


def test_share_of_one_accepts_every_crop_and_half_is_refused():
    label, image = jnp.zeros((64, 64), np.uint8), jnp.zeros((64, 64, 3), np.uint8)
    boxes = np.arange(22).reshape(11, 2)
    config = AugmentConfig(crop_size=32, scales=(2.0,), max_class_share=1.0)
    table = opencv_resize.axis_tables(64, (64,))
    crop = jnp.asarray([32, 32])
    chosen = geometric.choose_box(config, [table, table], draws(boxes), crop, label)
    np.testing.assert_array_equal(chosen, boxes[0])
    config = AugmentConfig(crop_size=32, max_class_share=0.5)
    with pytest.raises(UserError, match=r"max_class_share is 0\.5"):
        geometric.geometric(config, draws(boxes), image, label)
