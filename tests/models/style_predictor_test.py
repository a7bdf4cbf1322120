"""The paper's predictor compared with golden numbers at every stage, and the small one's depthwise convolution."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax import nnx

from crossearth_jax.models.style_network import StyleNetwork
from crossearth_jax.models.style_predictor import (
    Depthwise,
    average_pool,
    depthwise_by_groups,
    inception_colours,
    max_pool,
)
from crossearth_jax.weights.style_files import from_torch

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "train"
NETWORK = StyleNetwork("inception")
CHAINS = {
    "Mixed_5b": ("branch1x1", "branch5x5_1 branch5x5_2", "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3"),
    "Mixed_6a": ("branch3x3", "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3"),
    "Mixed_6b": (
        "branch1x1",
        "branch7x7_1 branch7x7_2 branch7x7_3",
        "branch7x7dbl_1 branch7x7dbl_2 branch7x7dbl_3 branch7x7dbl_4 branch7x7dbl_5",
    ),
}


@jax.jit
def stages(params, images):
    """Compute the recorded stages with the parts of the modules."""
    modules = NETWORK.modules(params).predictor
    found = {"Conv2d_1a_input": inception_colours(images)}
    x = found["Conv2d_1a_input"]
    for name in ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"):
        found[name] = x = getattr(modules, name)(x)
    x = max_pool(x)
    for name in ("Conv2d_3b_1x1", "Conv2d_4a_3x3"):
        found[name] = x = getattr(modules, name)(x)
    x = max_pool(x)
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        block = getattr(modules, name)
        for chain in CHAINS.get(name, ()):
            y = x
            for branch in chain.split():
                found[f"{name}.{branch}"] = y = getattr(block, branch)(y)
        if name in ("Mixed_5b", "Mixed_6b"):
            found[f"{name}.branch_pool"] = block.branch_pool(average_pool(x))
        found[name] = x = block(x)
    found["pooled"] = jnp.mean(x, axis=(1, 2))
    found["embedding"] = NETWORK.encode(params, images)
    return {f"predictor.{name}": value for name, value in found.items()}


def test_every_stage_is_within_five_times_the_noise(published_style):
    stats = json.loads((GOLDEN / "style_stats.json").read_text())
    golden = dict(np.load(GOLDEN / "style_predictor.npz"))
    params = {name: jnp.asarray(value) for name, value in from_torch(published_style)[0].items()}
    found = stages(params, jnp.asarray(rearrange(golden["predictor.input"], "b c h w -> b h w c")))
    assert set(found) == {name for name in golden if name in stats}
    for name, value in found.items():
        flat = np.asarray(rearrange(value, "b h w c -> b c h w") if value.ndim == 4 else value).reshape(-1)
        error = np.abs(flat[:: stats[name]["stride"]] - golden[name]).max()
        assert error <= 5 * stats[name]["noise"], (name, error / stats[name]["noise"])


def test_colours_keep_the_published_slip():
    pixels = jnp.asarray([[[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]]])
    black, white = np.asarray(inception_colours(pixels))[0, 0]
    np.testing.assert_allclose(black, [-1, -1, -0.406 * 0.225 / 0.255 / 0.5 - 0.188], atol=1e-6)
    np.testing.assert_allclose(white, [1, 1, 0.594 * 0.225 / 0.255 / 0.5 - 0.188], atol=1e-6)


@pytest.mark.parametrize(("stride", "side"), [(1, 8), (2, 7), (2, 8)])
def test_depthwise_equals_the_grouped_convolution(stride, side):
    module = Depthwise(5, stride, dtype="float32", rngs=nnx.Rngs(0))
    module.bias[...] = jnp.arange(5.0)
    x = jax.random.normal(jax.random.key(1), (2, side, side + 3, 5))
    kernel = rearrange(module.kernel[...], "h w c -> h w 1 c")
    expected = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=5
    )
    np.testing.assert_allclose(jax.jit(lambda x: module(x))(x), expected + jnp.arange(5.0), atol=1e-5)
    np.testing.assert_allclose(depthwise_by_groups(x, module.kernel[...], stride), expected, atol=1e-6)
