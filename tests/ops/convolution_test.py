"""The convolution with its own gradients against that of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossearth_jax.ops import convolution as module
from crossearth_jax.ops.convolution import LAYOUT, convolution

RANDOM = np.random.default_rng(0)
IMAGES = jnp.asarray(RANDOM.standard_normal((2, 9, 7, 3)), jnp.float32)


def options(dilation, groups=1):
    return {
        "rhs_dilation": dilation, "lhs_dilation": (1, 1), "dimension_numbers": LAYOUT,
        "feature_group_count": groups, "precision": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("size", "padding", "strides", "dilation", "groups"),
    [
        ((3, 3), "SAME", (1, 1), (1, 1), 1),
        ((3, 3), "SAME", (1, 1), (2, 3), 1),
        ((2, 4), "SAME", (1, 1), (1, 2), 1),
        ((3, 2), "VALID", (1, 1), (2, 1), 1),
        ((3, 3), ((1, 0), (2, 2)), (1, 1), (1, 2), 1),
        ((1, 1), "VALID", (1, 1), (1, 1), 1),
        ((2, 2), "VALID", (2, 2), (1, 1), 1),
        ((3, 7), "VALID", (3, 7), (1, 1), 1),
        ((3, 1), "VALID", (3, 1), (1, 1), 3),
        ((3, 3), "SAME", (1, 1), (1, 1), 3),
        ((3, 2), ((1, 0), (2, 2)), (1, 1), (1, 2), 3),
        ((3, 3), "VALID", (2, 2), (1, 1), 3),
    ],
)
@pytest.mark.parametrize("outputs", [3, 6])
def test_values_and_gradients_are_those_of_jax(size, padding, strides, dilation, groups, outputs):
    kernel = jnp.asarray(RANDOM.standard_normal((*size, 3 // groups, outputs)), jnp.float32)
    rest = (strides, padding), options(dilation, groups)
    expected, pull = jax.vjp(lambda x, k: jax.lax.conv_general_dilated(x, k, *rest[0], **rest[1]), IMAGES, kernel)
    found, own_pull = jax.vjp(lambda x, k: convolution(x, k, *rest[0], **rest[1]), IMAGES, kernel)
    if "conv_general" in str(jax.make_jaxpr(lambda x, k: convolution(x, k, *rest[0], **rest[1]))(IMAGES, kernel)):
        np.testing.assert_array_equal(found, expected)
    else:  # a product or a sum of shifted images adds in another order
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    change = jnp.asarray(RANDOM.standard_normal(found.shape), jnp.float32)
    for mine, theirs in zip(own_pull(change), pull(change), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_gradients_inside_a_condition_have_the_fast_form():
    """XLA's CPU compiler then gives them to its library of matrix products, as at the top level of a program."""
    kernel = jnp.ones((3, 3, 3, 6))

    def loss(images, kernel, on):
        def convolved(images, kernel):
            return jnp.abs(convolution(images, kernel, (1, 1), "SAME", **options((2, 2)))).sum()

        return jax.lax.cond(on, convolved, lambda images, kernel: 0.0 * images.sum(), images, kernel)

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(IMAGES, kernel, True).compile().as_text()
    forms = [line.split("dim_labels=")[1].split(",")[0] for line in compiled.splitlines() if " convolution(" in line]
    assert set(forms) == {"b01f_01io->b01f"} and len(forms) == 3


def test_windows_that_tile_the_image_are_a_product():
    """The gradient of the image is slow as a convolution on a CPU."""
    kernel = jnp.ones((3, 7, 3, 6))
    squares = jax.grad(lambda x: (convolution(x, kernel, (3, 7), "VALID", **options((1, 1))) ** 2).sum())
    assert "conv_general" not in str(jax.make_jaxpr(squares)(IMAGES))


def test_a_depthwise_convolution_is_a_sum_of_shifted_images():
    """Its gradient is slow as a convolution on a CPU."""
    kernel = jnp.ones((3, 3, 1, 3))
    squares = jax.grad(lambda x, k: (convolution(x, k, (1, 1), "SAME", **options((1, 1), 3)) ** 2).sum(), (0, 1))
    assert "conv_general" not in str(jax.make_jaxpr(squares)(IMAGES, kernel))


def test_other_platforms_get_the_convolution_of_jax(monkeypatch):
    monkeypatch.setattr(module, "platform", lambda: "tpu")
    kernel = jnp.ones((3, 3, 3, 6))
    jaxpr = jax.make_jaxpr(lambda x, k: convolution(x, k, (1, 1), "SAME", **options((1, 1))))(IMAGES, kernel)
    assert [equation.primitive.name for equation in jaxpr.eqns] == ["conv_general_dilated"]
