"""The augmentation pipeline compared with golden numbers of mmsegmentation's for the same draws, and properties."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossearth_jax.augment import geometric, photometric, pipeline
from crossearth_jax.benchmark import IGNORE
from crossearth_jax.config import AugmentConfig, MeshConfig
from crossearth_jax.ops.normalization import MEAN, normalize
from crossearth_jax.runtime import parallel
from tests.augment.photometric_test import golden_draws

GOLDEN = pathlib.Path(__file__).parents[1] / "golden/train"
CASES = json.loads((GOLDEN / "pipeline.json").read_text())
ARRAYS = np.load(GOLDEN / "pipeline.npz")
CONFIG = AugmentConfig(crop_size=64)


@jax.jit
def augment_with(geometric_draws, photometric_draws, image, label):
    example = pipeline.Sample(*geometric.geometric(CONFIG, geometric_draws, image, label))
    example = example._replace(image=photometric.photometric(photometric_draws, example.image))
    return example, normalize(pipeline.fill_padding(example))


@pytest.mark.parametrize("name", CASES)
def test_pipeline_equals_the_reference(name):
    case = CASES[name]
    offered = case["offsets_offered"]
    boxes = np.array(offered + [offered[-1]] * (11 - len(offered)))
    flips = (case["scale_index"], boxes, case["flip"], False)
    draws = geometric.GeometricDraws(*map(jnp.asarray, flips))
    image, label = ARRAYS[f"{name}.img"][..., ::-1], ARRAYS[f"{name}.gt"]
    assert list(geometric.resized_sizes(CONFIG, *label.shape)[case["scale_index"]]) == case["resized_hw"]
    example, network_input = augment_with(draws, golden_draws(case["photometric"]), image, label)
    height, width = case["cropped_hw"]
    np.testing.assert_array_equal(example.label, ARRAYS[f"{name}.target"])
    assert int(example.inside.sum()) == height * width
    packed = np.moveaxis(ARRAYS[f"{name}.packed"], 0, -1)[..., ::-1].astype(int)
    levels = np.abs(np.asarray(example.image[:height, :width]).astype(int) - packed)
    # OpenCV rounds instead of truncating in the last 19 columns of `small_padded` (51 is not a multiple of 32). This
    # difference of one level may double in the two colour conversions. A fused multiply-add can add one level.
    whole = width // 32 * 32
    assert np.mean(levels[:, :whole] > 0) <= 0.01 and levels[:, :whole].max() <= 1
    assert levels.max() <= 2
    expected = np.moveaxis(ARRAYS[f"{name}.inputs"], 0, -1)
    np.testing.assert_allclose(network_input[:height, :whole], expected[:height, :whole], atol=1.01 / 57)
    assert not np.any(np.asarray(network_input)[~np.asarray(example.inside)])


def batch(size=16, side=48):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (size, side, side, 3), np.uint8), rng.integers(0, 5, (size, side, side), np.uint8)


augment = jax.jit(functools.partial(pipeline.augment, AugmentConfig(crop_size=32)))


def test_images_are_whole_numbers_and_padding_normalises_to_zero():
    images, labels, inside = jax.tree.map(np.asarray, augment(jax.random.key(0), *batch()))
    assert images.shape == (16, 32, 32, 3) and 0 < inside.mean() < 1
    np.testing.assert_array_equal(images[inside], np.round(images[inside]))
    assert images.min() >= 0 and images.max() <= 255
    assert not np.any(np.asarray(normalize(jnp.asarray(images)))[~inside])
    np.testing.assert_array_equal(labels == 255, ~inside)


def test_the_key_and_the_place_in_the_batch_decide():
    images, labels = batch()
    first, again = augment(jax.random.key(3), images, labels), augment(jax.random.key(3), images, labels)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    other = augment(jax.random.key(4), images, labels)
    assert np.mean(np.any(np.asarray(first[0] != other[0]), axis=(1, 2, 3))) == 1
    same = augment(jax.random.key(3), np.tile(images[:1], (16, 1, 1, 1)), np.tile(labels[:1], (16, 1, 1)))
    assert len({image.tobytes() for image in np.asarray(same[0])}) == 16


def test_sharded_batch_gives_the_same_without_communication():
    mesh = parallel.make_mesh(MeshConfig())
    key, arrays = jax.random.key(3), batch()
    plain = augment(key, *arrays)
    sharded = jax.device_put(arrays, parallel.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        compiled = (
            jax.jit(functools.partial(pipeline.augment, AugmentConfig(crop_size=32))).lower(key, *sharded).compile()
        )
        result = compiled(key, *sharded)
    jax.tree.map(np.testing.assert_array_equal, plain, result)
    assert len({shard.device for shard in result[0].addressable_shards if shard.data.shape[0] == 2}) == 8
    assert not any(word in compiled.as_text() for word in ("all-reduce", "all-gather", "all-to-all", "permute("))


def test_colours_can_be_left_alone():
    images, labels = batch(4, 32)
    config = AugmentConfig(crop_size=32, scales=(1.0,), photometric=False, flip=False)
    result, kept, inside = jax.jit(functools.partial(pipeline.augment, config))(jax.random.key(0), images, labels)
    np.testing.assert_array_equal(result, images)
    np.testing.assert_array_equal(kept, labels)
    assert inside.all()


def test_switching_a_transform_off_keeps_the_noise_of_the_others():
    images, labels = batch()
    config = AugmentConfig(crop_size=32, photometric=False)
    _, with_colours, _ = augment(jax.random.key(3), images, labels)
    _, without, _ = jax.jit(functools.partial(pipeline.augment, config))(jax.random.key(3), images, labels)
    np.testing.assert_array_equal(with_colours, without)


def test_padding_of_a_small_image_is_known_after_the_transforms():
    config = AugmentConfig(crop_size=8, scales=(1.0,), max_class_share=1.0, photometric=False)
    images = np.random.default_rng(0).integers(1, 256, (4, 8, 8, 3), np.uint8)
    labels = np.ones((4, 8, 8), np.uint8)
    sizes = jnp.array([[5, 3], [8, 8], [8, 2], [1, 8]])
    found, label, inside = pipeline.augment(config, jax.random.key(3), jnp.asarray(images), jnp.asarray(labels), sizes)
    flipped = 0
    for image, (height, width), shown, classes, mask in zip(images, sizes.tolist(), found, label, inside, strict=True):
        assert mask.sum() == height * width
        np.testing.assert_array_equal(classes, np.where(mask, 1, IGNORE))
        np.testing.assert_array_equal(shown[~mask], np.broadcast_to(MEAN, shown[~mask].shape))
        wanted, pixels = image[:height, :width], np.asarray(shown)[np.asarray(mask)].reshape(height, width, 3)
        flipped += not np.array_equal(pixels, wanted)
        np.testing.assert_array_equal(pixels, wanted if np.array_equal(pixels, wanted) else wanted[:, ::-1])
    assert 0 < flipped < 4
