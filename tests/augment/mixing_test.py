"""Augmentations that mix the images of a batch: numpy restatements and properties."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossearth_jax.augment import mixing
from crossearth_jax.augment.pipeline import augment
from crossearth_jax.config import AugmentConfig, Config, MeshConfig, MixConfig, UserError
from crossearth_jax.config_check import check_config
from crossearth_jax.runtime import parallel


@functools.partial(jax.jit, static_argnums=0)
def jitted(function, *arrays):
    return function(*arrays)


mix_amplitudes = functools.partial(jitted, mixing.mix_amplitudes)
mix_statistics = functools.partial(jitted, mixing.mix_statistics)
jitted_mix = jax.jit(mixing.mix, static_argnums=0)

KINDS = ("fourier", "statistics", "cutmix", "grid_shuffle")
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (4, 24, 24, 3)).astype(np.float32)
LABELS = RNG.integers(0, 5, (4, 24, 24)).astype(np.uint8)
INSIDE = np.ones((4, 24, 24), bool)


def mixed(kind, **changes):
    config = MixConfig(kind=kind, **{"probability": 1.0, **changes})
    return [np.asarray(x) for x in jitted_mix(config, jax.random.key(0), IMAGES, LABELS, INSIDE)]


def test_amplitudes_equal_numpy():
    own, other = (np.fft.fft2(x, axes=(0, 1)) for x in IMAGES[:2])
    wanted = np.fft.ifft2((0.75 * abs(own) + 0.25 * abs(other)) * np.exp(1j * np.angle(own)), axes=(0, 1)).real
    found = mix_amplitudes(IMAGES[0], IMAGES[1], jnp.float32(0.25))
    # Rounded to whole numbers: a value next to a half may fall to either side.
    np.testing.assert_allclose(found, np.clip(wanted, 0, 255), atol=0.501)


def test_amplitudes_of_a_uniform_image():
    """Only the mean has an amplitude; no other frequency of the image divides by zero."""
    uniform = np.full((8, 8, 3), 100, np.float32)
    np.testing.assert_array_equal(mix_amplitudes(uniform, uniform + 50, jnp.float32(0.5)), uniform + 25)


def test_statistics_reach_the_partner_and_spare_the_padding():
    rng = np.random.default_rng(1)
    own = np.round(rng.normal(100, 20, (64, 64, 3))).astype(np.float32)
    partner = np.round(rng.normal((90, 120, 150), 10, (64, 64, 3))).astype(np.float32)
    inside = np.arange(64)[:, None] < np.full(64, 48)
    own[48:] = 0
    found = np.asarray(mix_statistics(own, partner, jnp.float32(1), inside, np.ones_like(inside)))
    np.testing.assert_allclose(found[:48].mean((0, 1)), partner.mean((0, 1)), atol=0.1)
    np.testing.assert_allclose(found[:48].std((0, 1)), partner.std((0, 1)), atol=0.1)
    assert not found[48:].any()
    halfway = np.asarray(mix_statistics(own, partner, jnp.float32(0.5), inside, np.ones_like(inside)))
    np.testing.assert_allclose(
        halfway[:48].mean((0, 1)), (own[:48].mean((0, 1)) + found[:48].mean((0, 1))) / 2, atol=0.1
    )


def test_cutmix_pastes_image_and_labels_of_the_next_sample():
    images, labels, _ = mixed("cutmix")
    for i in range(4):
        pasted = (images[i] != IMAGES[i]).any(-1)
        np.testing.assert_array_equal(images[i][pasted], np.roll(IMAGES, -1, 0)[i][pasted])
        rows, columns = np.flatnonzero(pasted.any(1)), np.flatnonzero(pasted.any(0))
        box = np.zeros((24, 24), bool)
        if pasted.any():
            box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        np.testing.assert_array_equal(pasted, box)
        np.testing.assert_array_equal(labels[i], np.where(box, np.roll(LABELS, -1, 0)[i], LABELS[i]))
    assert 0 < (images != IMAGES).any(-1).mean() < 0.6


def test_rectangles_cover_the_area_they_are_drawn_for():
    """A quarter of the image on average where no rectangle reaches over the border: less with the borders."""
    keys = jax.random.split(jax.random.key(0), 2000)
    areas = jax.vmap(lambda key: mixing.rectangle(key, (64, 64), 0.5).mean())(keys)
    assert 0.1 < areas.mean() < 0.25 and areas.max() <= 0.52


def test_grid_shuffle_moves_whole_cells_with_their_labels():
    images, labels, inside = mixed("grid_shuffle", grid=3)
    assert inside.all()

    def cells(x):
        return [tuple(x[i : i + 8, j : j + 8].ravel()) for i in range(0, 24, 8) for j in range(0, 24, 8)]

    for i in range(4):
        before = list(zip(cells(IMAGES[i]), cells(LABELS[i]), strict=True))
        after = list(zip(cells(images[i]), cells(labels[i]), strict=True))
        assert sorted(before) == sorted(after) and before != after


def test_cells_with_a_rest():
    values = np.arange(35).reshape(5, 7)
    found = mixing.shuffle_cells(jnp.asarray(values), jnp.array([1, 0, 2, 3]), 2)
    np.testing.assert_array_equal(found[:2], [[3, 4, 5, 0, 1, 2, 6], [10, 11, 12, 7, 8, 9, 13]])
    np.testing.assert_array_equal(found[2:], values[2:])


@pytest.mark.parametrize("kind", KINDS)
def test_the_probability_is_that_of_an_image(kind):
    config = MixConfig(kind=kind, probability=0.25)
    batch = (np.tile(IMAGES, (64, 1, 1, 1)), np.tile(LABELS, (64, 1, 1)), np.tile(INSIDE, (64, 1, 1)))
    images = np.asarray(jitted_mix(config, jax.random.key(1), *batch)[0])
    changed = (images != batch[0]).any((1, 2, 3)).mean()
    assert 0.15 < changed < 0.35
    assert np.array_equal(images, np.round(images)) and images.min() >= 0 and images.max() <= 255
    unmixed = jitted_mix(dataclasses.replace(config, probability=0.0), jax.random.key(1), *batch)
    for found, given in zip(unmixed, batch, strict=True):
        np.testing.assert_array_equal(found, given)


@pytest.mark.parametrize("kind", KINDS)
def test_eight_devices_mix_as_one_does(kind):
    config = AugmentConfig(crop_size=32, mix=MixConfig(kind=kind))
    images, labels = RNG.integers(0, 256, (8, 40, 40, 3), np.uint8), RNG.integers(0, 5, (8, 40, 40), np.uint8)
    results = []
    for devices in (1, 8):
        mesh = parallel.make_mesh(MeshConfig(), jax.devices()[:devices])
        with jax.set_mesh(mesh):
            batch = parallel.global_batch({"image": images, "label": labels}, mesh)
            run = jax.jit(lambda b: augment(config, jax.random.key(3), b["image"], b["label"]))
            results.append(jax.tree.map(np.asarray, run(batch)))
    for one, eight in zip(*results, strict=True):
        np.testing.assert_allclose(one.astype(float), eight.astype(float), atol=1)  # a rounding to a whole number


def test_unknown_kinds_and_impossible_numbers_are_refused():
    for changes, message in (
        ({"kind": "mosaic"}, "augment.mix.kind is 'mosaic', expected one of fourier, statistics, cutmix, grid_shuffle"),
        ({"strength": 1.5}, "augment.mix.strength is 1.5, expected 0 to 1"),
        ({"grid": 1}, "augment.mix.grid is 1, expected 2 or more"),
    ):
        with pytest.raises(UserError, match=message):
            check_config(Config(name="mix", augment=AugmentConfig(mix=MixConfig(**changes))))
