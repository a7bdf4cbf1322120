"""The interface of the style network: golden codes and restyled images, images of any size, and errors."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from crossearth_jax.config import UserError
from crossearth_jax.models.style_network import StyleNetwork
from crossearth_jax.weights.style_files import from_torch, load_style

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "train"
MOBILE, INCEPTION = StyleNetwork("mobile"), StyleNetwork("inception")


STYLIZE = jax.jit(MOBILE.stylize)


@pytest.fixture(scope="module")
def mobile():
    return load_style(MOBILE)


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(0), (2, 67, 70, 3))


@pytest.fixture(scope="module")
def codes():
    return 2 * jax.random.normal(jax.random.key(1), (2, 100))


def test_codes_and_restyled_images_are_the_published_augmentors(published_style):
    params = {name: jnp.asarray(value) for name, value in from_torch(published_style)[0].items()}
    golden = np.load(GOLDEN / "style_augmentor.npz")
    stats = json.loads((GOLDEN / "style_stats.json").read_text())
    images = np.load(GOLDEN / "style_transformer.npz")["transformer.input"]
    images = jnp.asarray(rearrange(images, "b c h w -> b h w c"))

    own = jax.jit(INCEPTION.encode)(params, images)
    assert np.abs(own - golden["base"]).max() <= 5 * stats["predictor.embedding"]["noise"]
    stylize = jax.jit(INCEPTION.stylize)
    for alpha in (0.1, 0.5):
        codes = alpha * golden["sampled"][:2] + (1 - alpha) * own
        restyled = rearrange(stylize(params, images, codes), "b h w c -> b c h w")
        error = np.abs(restyled - golden[f"restyled_alpha{alpha}"]).max()
        assert error <= 5 * stats["augmentor.restyled_alpha0.1"]["noise"]


def test_any_size_comes_back_in_range(mobile, images, codes):
    styled = STYLIZE(mobile, images, codes)
    assert styled.shape == images.shape
    assert 0 <= styled.min() and styled.max() <= 1 and styled.std() > 0.05


def test_small_images_are_redrawn_enlarged(mobile, images, codes):
    large = jax.image.resize(images, (2, 134, 140, 3), "linear")  # by 2, so that the shorter side exceeds 128
    expected = STYLIZE(mobile, large, codes).reshape(2, 67, 2, 70, 2, 3).mean((2, 4))
    np.testing.assert_allclose(STYLIZE(mobile, images, codes), expected, atol=1e-5)


def test_every_image_has_its_own_style(mobile, images, codes):
    together, swapped = STYLIZE(mobile, images, codes), STYLIZE(mobile, images[::-1], codes[::-1])
    np.testing.assert_allclose(together, swapped[::-1], atol=1e-5)
    assert jnp.abs(STYLIZE(mobile, images, codes[::-1]) - together).mean() > 0.05


def test_half_precision_stays_close(mobile, images, codes):
    half = jax.jit(StyleNetwork("mobile", "bfloat16").stylize)(mobile, images, codes)
    assert half.dtype == jnp.float32
    # Thirteen consecutive norms with 8 significant bits: the measured mean difference is 0.004.
    assert jnp.abs(half - STYLIZE(mobile, images, codes)).mean() < 0.01


def test_codes_do_not_depend_on_the_size_of_a_plain_image(mobile):
    colour = jnp.asarray([0.2, 0.5, 0.7])
    encode = jax.jit(MOBILE.encode)
    small, full = (encode(mobile, jnp.broadcast_to(colour, (1, side, side, 3))) for side in (40, 256))
    np.testing.assert_allclose(small, full, atol=1e-4)  # resizing changes a plain image by up to 1e-7


def test_refuses_what_does_not_fit(mobile):
    with pytest.raises(UserError, match="of the 226 parameters of the 'inception' style network are missing"):
        INCEPTION.encode(mobile, jnp.zeros((1, 64, 64, 3)))
    with pytest.raises(UserError, match="at least 43 pixels a side, found 42 x 64"):
        INCEPTION.encode(mobile, jnp.zeros((1, 42, 64, 3)))
    shapes = jax.eval_shape(INCEPTION.encode, INCEPTION.shapes(), jax.ShapeDtypeStruct((1, 43, 43, 3), jnp.float32))
    assert shapes.shape == (1, 100)
