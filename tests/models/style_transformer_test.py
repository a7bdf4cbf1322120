"""The paper's transformer compared with golden numbers at every stage, and properties of the small one."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from crossearth_jax.models.style_network import StyleNetwork
from crossearth_jax.models.style_transformer import enlarge, instance_norm
from crossearth_jax.weights.style_files import from_torch

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "train"
NETWORK = StyleNetwork("inception")


@pytest.fixture(scope="module")
def params(published_style):
    return {name: jnp.asarray(value) for name, value in from_torch(published_style)[0].items()}


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "style_transformer.npz"))


def channel_last(image):
    return jnp.asarray(rearrange(image, "b c h w -> b h w c"))


@jax.jit
def stages(params, images, codes):
    """Compute every recorded stage with the parts of the modules."""
    modules = NETWORK.modules(params).transformer
    x, found = images, {}
    for i, conv in enumerate(modules.contract):
        found[f"{i}.conv"] = conv(x)
        found[f"{i}"] = x = modules.contracted(found[f"{i}.conv"])
    for i, block in enumerate(modules.residual, start=3):
        found[f"{i}.conv1"] = block.conv1.conv(x)
        found[f"{i}.relu"] = jax.nn.relu(block.conv1.restyle(found[f"{i}.conv1"], codes))
        found[f"{i}.conv2"] = block.conv2.conv(found[f"{i}.relu"])
        found[f"{i}"] = x = block(x, codes)
    for i, block in enumerate(modules.expand, start=8):
        found[f"{i}.conv"] = block.conv(x if i == 10 else enlarge(x))
        x = block.restyle(found[f"{i}.conv"], codes)
        found[f"{i}"] = x = x if i == 10 else jax.nn.relu(x)
    found = {f"transformer.layers.{name}": value for name, value in found.items()}
    return found | {"transformer.output": NETWORK.stylize(params, images, codes)}


def test_every_stage_is_within_five_times_the_noise(params, golden):
    stats = json.loads((GOLDEN / "style_stats.json").read_text())
    images, codes = channel_last(golden["transformer.input"]), jnp.asarray(golden["transformer.embedding"])
    found = stages(params, images, codes)
    recorded = [name for name in golden if name in stats and "odd" not in name]
    assert len(recorded) == 21
    for name in recorded:
        value = rearrange(np.asarray(found[name]), "b h w c -> b c h w")
        assert list(value.shape) == stats[name]["shape"], name
        error = np.abs(value.reshape(-1)[:: stats[name]["stride"]] - golden[name].reshape(-1)).max()
        assert error <= 5 * stats[name]["noise"], (name, error / stats[name]["noise"])


def test_output_of_odd_sizes_is_within_five_times_the_noise(params, golden):
    stats = json.loads((GOLDEN / "style_stats.json").read_text())
    images, codes = channel_last(golden["transformer.input_odd"]), jnp.asarray(golden["transformer.embedding"][:1])
    output = jax.jit(lambda p, x, c: NETWORK.modules(p).transformer(x, c))(params, images, codes)
    expected = channel_last(golden["transformer.output_odd"])
    assert output.shape == expected.shape == (1, 64, 52, 3)
    assert jnp.abs(output - expected).max() <= 5 * stats["transformer.output_odd"]["noise"]


def test_instance_norm_standardises_every_channel_of_every_image():
    x = np.random.default_rng(0).normal(3, 7, (2, 5, 6, 4)).astype(np.float32)
    expected = (x - x.mean((1, 2), keepdims=True)) / np.sqrt(x.var((1, 2), keepdims=True) + 1e-5)
    np.testing.assert_allclose(instance_norm(jnp.asarray(x)), expected, atol=2e-6)


def test_instance_norm_of_a_constant_is_zero():
    np.testing.assert_array_equal(instance_norm(jnp.full((1, 4, 4, 2), 3.0)), 0)


def test_enlarge_repeats_pixels():
    assert enlarge(jnp.asarray([[[[1.0], [2.0]]]])).tolist() == [[[[1], [1], [2], [2]], [[1], [1], [2], [2]]]]
