"""Reconstruction terms compared with the reference's, from the reference's predictions."""

import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from crossearth_jax.config import MimTaskConfig
from crossearth_jax.losses.mim import reconstruction_loss

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIG = MimTaskConfig()
# Five times the reference's largest float32 noise in any of the three terms (mim_noise.json).
TOLERANCE = 5 * 2.8e-7

loss = jax.jit(reconstruction_loss, static_argnums=0)


def channels_last(array):
    return jnp.asarray(rearrange(array, "b c h w -> b h w c"))


@pytest.fixture(scope="module")
def images():
    return channels_last(np.load(GOLDEN / "tiny" / "forward.npz")["input"])


@pytest.fixture(scope="module")
def styled():
    return np.load(GOLDEN / "train" / "mim_styled.npz")


def test_all_styled_equals_the_reference(images, styled):
    predictions = [channels_last(styled[name]) for name in ("prediction", "prediction2")]
    terms = loss(CONFIG, images, *predictions, jnp.ones(2, bool))
    np.testing.assert_allclose(terms["mim/masked"], styled["l1_masked"], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(terms["mim/styled"], styled["l1_styled"], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(terms["mim/consistency"], styled["l1_between"], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(sum(terms.values()), styled["loss"], rtol=0, atol=TOLERANCE)


def test_none_styled_equals_the_reference(images):
    golden = np.load(GOLDEN / "train" / "mim_masked_only.npz")
    prediction = channels_last(golden["prediction"])
    # Reconstructions of samples that are not restyled must have no influence, not even on the gradient.
    nothing = jnp.full_like(prediction, 7.0)
    terms = loss(CONFIG, images, prediction, nothing, jnp.zeros(2, bool))
    np.testing.assert_allclose(sum(terms.values()), golden["loss"], rtol=0, atol=TOLERANCE)
    assert terms["mim/styled"] == terms["mim/consistency"] == 0
    gradient = jax.grad(lambda x: sum(loss(CONFIG, images, prediction, x, jnp.zeros(2, bool)).values()))(nothing)
    assert not gradient.any()


def test_image_of_another_size_is_resized_as_the_reference_does():
    golden = np.load(GOLDEN / "train" / "mim_wide.npz")
    # Arrays that are not stored follow the rule in the README of the golden numbers.
    rng = np.random.Generator(np.random.PCG64(606 + zlib.crc32(b"mim_wide.image")))
    image = channels_last(rng.standard_normal((1, 3, 80, 96)).astype(np.float32))
    prediction = channels_last(golden["prediction"])
    terms = loss(CONFIG, image, prediction, prediction, jnp.zeros(1, bool))
    np.testing.assert_allclose(terms["mim/masked"], golden["loss"], rtol=0, atol=TOLERANCE)


def test_one_styled_sample_of_two_weighs_half(images, styled):
    predictions = [channels_last(styled[name]) for name in ("prediction", "prediction2")]
    first, second = (loss(CONFIG, images, *predictions, jnp.array(flags)) for flags in ([True, False], [False, True]))
    both = loss(CONFIG, images, *predictions, jnp.ones(2, bool))
    alone = loss(CONFIG, images[:1], *(p[:1] for p in predictions), jnp.ones(1, bool))
    for name in ("mim/styled", "mim/consistency"):
        np.testing.assert_allclose(first[name] + second[name], both[name], rtol=1e-6)
        np.testing.assert_allclose(first[name], alone[name] / 2, rtol=1e-6)


def test_weights_and_low_precision(images, styled):
    predictions = [channels_last(styled[name]).astype(jnp.bfloat16) for name in ("prediction", "prediction2")]
    config = MimTaskConfig(masked_weight=2.0, styled_weight=3.0, consistency_weight=0.0)
    terms = loss(config, images.astype(jnp.bfloat16), *predictions, jnp.ones(2, bool))
    assert all(value.dtype == jnp.float32 for value in terms.values())
    # The inputs are rounded to 8 bits.
    np.testing.assert_allclose(terms["mim/masked"], 2 * styled["l1_masked"], rtol=1e-3)
    np.testing.assert_allclose(terms["mim/styled"], 3 * styled["l1_styled"], rtol=1e-3)
    assert terms["mim/consistency"] == 0


def test_padding_does_not_count():
    rng = np.random.default_rng(0)
    image, masked, styled = (jnp.asarray(rng.standard_normal((2, 8, 8, 3)), jnp.float32) for _ in range(3))
    inside = jnp.ones((2, 8, 8), bool).at[0, 4:].set(False).at[1, :, 6:].set(False)
    terms = loss(CONFIG, image, masked, styled, jnp.array([True, False]), inside)
    pixels = 4 * 8 + 8 * 6
    by_hand = np.abs(masked - image)[0, :4].sum() + np.abs(masked - image)[1, :, :6].sum()
    np.testing.assert_allclose(terms["mim/masked"], by_hand / 3 / pixels, rtol=1e-6)
    np.testing.assert_allclose(terms["mim/styled"], np.abs(styled - image)[0, :4].sum() / 3 / pixels, rtol=1e-6)
    np.testing.assert_allclose(terms["mim/consistency"], np.abs(styled - masked)[0, :4].sum() / 3 / pixels, rtol=1e-6)
    # Pixels of a smaller target that contain padding do not count either: rows 0 and 1 of 4 and columns 0 to 2 remain.
    small = loss(CONFIG, image, masked[:, ::2, ::2], styled[:, ::2, ::2], jnp.zeros(2, bool), inside)
    target = np.asarray(image).reshape(2, 4, 2, 4, 2, 3).mean((2, 4))
    difference = np.abs(np.asarray(masked)[:, ::2, ::2] - target)
    by_hand = difference[0, :2].sum() + difference[1, :, :3].sum()
    np.testing.assert_allclose(small["mim/masked"], by_hand / 3 / (2 * 4 + 4 * 3), rtol=1e-5)
