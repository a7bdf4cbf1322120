"""Low-rank adapters: the adapted network compared with one whose kernels NumPy has changed, and what is trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossearth_jax.config import HeadConfig, LoraConfig, ModelConfig, UserError, ViTConfig
from crossearth_jax.models.lora import minor_components
from crossearth_jax.models.network import SegmentationModel

VIT = ViTConfig(
    image_size=16, patch_size=4, width=16, depth=4, heads=2, mlp_width=24, feature_blocks=(0, 1, 2, 3),
    layer_scale=1.0,
)  # fmt: skip
CONFIG = ModelConfig(
    classes=3, vit=VIT, head=HeadConfig(kind="linear"), adapter="lora", lora=LoraConfig(rank=2, scale=0.5)
)
IMAGES = np.random.default_rng(0).normal(size=(2, 16, 12, 3)).astype(np.float32)


def features(config, params):
    return jax.jit(SegmentationModel(config).features)(params, IMAGES).levels


def random_params(config):
    rng = np.random.default_rng(1)
    shapes = SegmentationModel(config).shapes()
    return {name: jnp.asarray(rng.normal(scale=0.2, size=shape.shape), jnp.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(("swiglu", "first"), [(False, 0), (True, 2)])
def test_adapted_layers_are_those_with_changed_kernels(swiglu, first):
    lora = dataclasses.replace(CONFIG.lora, first_block=first)
    config = dataclasses.replace(CONFIG, vit=dataclasses.replace(VIT, swiglu=swiglu), lora=lora)
    params = random_params(config)
    merged = {name: np.array(value) for name, value in params.items()}
    # Queries, keys and values, and gate and hidden units of the gated MLP, are separate matrices.
    matrices = {"attention/qkv": 3, "attention/proj": 1}
    matrices |= {"mlp/w12": 2, "mlp/w3": 1} if swiglu else {"mlp/fc1": 1, "mlp/fc2": 1}
    for layer, parts in matrices.items():
        factors = f"adapter/layers/{layer.split('/')[1]}"
        down, up = merged[f"{factors}/down"], merged[f"{factors}/up"]
        for block in range(first, 4):
            updates = [down[block - first, part] @ up[block - first, part] for part in range(parts)]
            merged[f"backbone/blocks/{layer}/kernel"][block] += 0.5 * np.concatenate(updates, axis=1)
    expected = features(dataclasses.replace(config, adapter="none"), merged)
    for found, wanted in zip(features(config, params), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


def test_the_initial_function_is_that_of_the_frozen_backbone():
    params = SegmentationModel(CONFIG).init(jax.random.key(0))
    for found, wanted in zip(
        features(CONFIG, params), features(dataclasses.replace(CONFIG, adapter="none"), params), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)
    down = np.asarray(params["adapter/layers/fc2/down"])  # PyTorch's distribution: uniform, 1 / sqrt(inputs)
    assert 0.9 / np.sqrt(24) < np.abs(down).max() <= 1 / np.sqrt(24)


@pytest.mark.parametrize(
    ("layer", "parts"), [("attention/qkv", 3), ("attention/proj", 1), ("mlp/fc1", 1), ("mlp/fc2", 1)]
)
def test_minor_components_are_those_of_the_singular_value_decomposition(layer, parts):
    config = dataclasses.replace(CONFIG, adapter="soma", lora=LoraConfig(rank=3, scale=0.5, first_block=1))
    params = {name: np.asarray(value) for name, value in random_params(config).items()}
    split = minor_components(config, params)
    kernels, short = params[f"backbone/blocks/{layer}/kernel"], layer.split("/")[1]
    down, up = split[f"adapter/layers/{short}/down"], split[f"adapter/layers/{short}/up"]
    residual = split[f"backbone/blocks/{layer}/kernel"]
    np.testing.assert_array_equal(residual[0], kernels[0])  # before the first block
    for block in range(1, 4):
        matrices = zip(np.split(kernels[block], parts, 1), np.split(residual[block], parts, 1), strict=True)
        for part, (matrix, rest) in enumerate(matrices):
            left, sizes, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
            smallest = (left[:, -3:] * sizes[-3:]) @ right[-3:]
            np.testing.assert_allclose(0.5 * down[block - 1, part] @ up[block - 1, part], smallest, atol=2e-6)
            np.testing.assert_allclose(rest, matrix - smallest, atol=2e-6)
            # Both factors have the square roots of the singular values as lengths.
            lengths = np.sqrt(np.sort(sizes)[:3] / 0.5)
            np.testing.assert_allclose(np.linalg.norm(down[block - 1, part], axis=0), lengths, rtol=1e-4)
            np.testing.assert_allclose(np.linalg.norm(up[block - 1, part], axis=1), lengths, rtol=1e-4)


def test_minor_components_keep_the_function():
    config = dataclasses.replace(CONFIG, adapter="soma")
    params = random_params(config)
    split = minor_components(config, jax.device_get(params))
    split = params | {name: jnp.asarray(x) for name, x in split.items()}
    expected = features(dataclasses.replace(config, adapter="none"), params)
    for found, wanted in zip(features(config, split), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_parameters_of_vit_l():
    """Per block: queries, keys, values, projection 16 (1024 + 1024) each; both layers of the MLP 16 (1024 + 4096)."""
    for first, blocks in ((0, 24), (8, 16)):
        config = ModelConfig(adapter="lora", lora=LoraConfig(first_block=first))
        shapes = SegmentationModel(config).shapes()
        assert not [name for name in shapes if name.startswith("reins/")]
        assert "head/mask_decoder/queries" in shapes  # no Rein tokens, so the queries are learnt
        total = sum(shape.size for name, shape in shapes.items() if name.startswith("adapter/"))
        assert total == blocks * 16 * (4 * 2048 + 2 * 5120)


def test_factors_are_split_as_the_layers_that_they_adapt():
    axes = SegmentationModel(CONFIG).axes()
    assert axes["backbone/blocks/attention/qkv/kernel"] == ("layers", "embed", "heads")
    assert axes["adapter/layers/qkv/down"] == ("layers", None, "embed", "rank")
    assert axes["adapter/layers/qkv/up"] == ("layers", None, "rank", "heads")
    assert axes["adapter/layers/fc2/down"] == ("layers", None, "mlp", "rank")
    assert axes["adapter/layers/fc2/up"] == ("layers", None, "rank", "embed")


def test_a_rank_above_the_width_is_named():
    with pytest.raises(UserError, match="rank is 17, expected at most the width of the backbone, 16"):
        SegmentationModel(dataclasses.replace(CONFIG, lora=LoraConfig(rank=17))).shapes()


def test_a_first_block_beyond_the_last_is_named():
    with pytest.raises(UserError, match="first_block is 4, expected less than 4 blocks"):
        SegmentationModel(dataclasses.replace(CONFIG, lora=LoraConfig(first_block=4))).shapes()
