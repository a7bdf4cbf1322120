"""The extractor against a convolution written as a sum of shifted products."""

import jax.numpy as jnp
import numpy as np
import pytest

from crossearth_jax.config import UserError
from crossearth_jax.models.gse import extract, layers


def stack(widths=(3, 4, 5, 6, 7, 8), sides=(3, 3, 5, 3, 1)):
    random = np.random.default_rng(0)
    params = {}
    for i, side in enumerate(sides):
        shape = (side, side, widths[i], widths[i + 1])
        params[f"gse/{2 * i}/kernel"] = random.standard_normal(shape).astype(np.float32) / side
        params[f"gse/{2 * i}/bias"] = random.standard_normal(widths[i + 1]).astype(np.float32)
    return params


def convolve(x, kernel, bias, stride):
    side = kernel.shape[0]
    padded = np.pad(x, ((0, 0), (side // 2,) * 2, (side // 2,) * 2, (0, 0)))
    height, width = x.shape[1:3]
    total = sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j].astype(np.float64)
        for i in range(side)
        for j in range(side)
    )
    return np.maximum(total + bias, 0)[:, ::stride, ::stride]


def test_four_layers_halve_the_image_and_all_end_in_relu():
    params = stack()
    images = np.random.default_rng(1).standard_normal((2, 32, 48, 3)).astype(np.float32)
    expected = images.astype(np.float64)
    for i in range(5):
        kernel, bias = params[f"gse/{2 * i}/kernel"], params[f"gse/{2 * i}/bias"]
        expected = convolve(expected, kernel, bias, 2 if i < 4 else 1)
    found = extract({k: jnp.asarray(v) for k, v in params.items()}, jnp.asarray(images))
    assert found.shape == (2, 2, 3, 8)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_layers_come_in_the_order_of_their_numbers():
    kernel = jnp.zeros((1, 1, 3, 3))
    assert layers({f"gse/{i}/kernel": kernel for i in (10, 2, 0)}) == ["gse/0", "gse/2", "gse/10"]


def test_weights_that_are_no_stack():
    with pytest.raises(UserError, match="no weights of the extractor"):
        layers({"reins/scale": jnp.zeros(())})
    with pytest.raises(UserError, match="gse/2 takes 4 channels, the layer before it gives 5"):
        layers({"gse/0/kernel": jnp.zeros((3, 3, 3, 5)), "gse/2/kernel": jnp.zeros((3, 3, 4, 5))})
