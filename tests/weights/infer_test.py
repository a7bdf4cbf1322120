"""Configurations inferred from shapes, and the parameter counts of the reference."""

import math

import pytest

from crossearth_jax.config import HeadConfig, MimConfig, ModelConfig, ReinsConfig, UserError, ViTConfig
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.weights.infer import check, feature_blocks, infer_config, shapes_of

# ViT-g, with all other sizes changed too.
OTHER = ModelConfig(
    classes=2,
    vit=ViTConfig(
        image_size=1024,
        width=1536,
        depth=40,
        heads=24,
        mlp_width=4096,
        swiglu=True,
        feature_blocks=(12, 19, 26, 39),
    ),
    reins=ReinsConfig(tokens=50, rank=8),
    head=HeadConfig(encoder_layers=3, encoder_mlp_width=64, decoder_layers=2, decoder_mlp_width=512),
    mim=MimConfig(width=32, token_size=512),
)


def shapes(config):
    return shapes_of(SegmentationModel(config).shapes())


@pytest.fixture(scope="module")
def full():
    return shapes(ModelConfig())


def numbers(found, part):
    return sum(math.prod(shape) for name, shape in found.items() if name.startswith(part))


def test_counts_of_the_reference(full):
    """Compare with the reference's parameter counts, without 2,048 + 1,024 numbers that have no effect."""
    assert numbers(full, "backbone/") == 304_199_680 - 3 * 1024
    assert numbers(full, "reins/") == 2_990_081
    assert numbers(full, "head/") == 20_576_455
    assert numbers(full, "head/pixel_decoder/encoder/") == 4_393_152


def test_configuration_is_read_from_shapes(full):
    assert infer_config(full) == ModelConfig()
    assert infer_config(shapes(OTHER)) == OTHER
    fewer = full | {"head/mask_decoder/class_head/bias": (6,), "backbone/position": (1025, 1024)}
    assert infer_config(fewer) == ModelConfig(classes=5)


def test_feature_blocks_of_every_depth():
    assert feature_blocks(24) == (7, 11, 15, 23)
    assert feature_blocks(12) == (3, 5, 7, 11)
    assert feature_blocks(40) == (12, 19, 26, 39)


def test_parts_alone(full):
    backbone = {name: shape for name, shape in full.items() if name.startswith("backbone/")}
    assert infer_config(backbone) == ModelConfig()
    trained = {name: shape for name, shape in full.items() if name not in backbone}
    assert infer_config(trained) == ModelConfig()
    check(trained, ModelConfig())
    check(backbone, ModelConfig())


@pytest.mark.parametrize(
    "change",
    [
        {"backbone/blocks/attention/qkv/kernel": (4, 64, 192)},
        {"head/pixel_decoder/encoder/attention/attention_weights/kernel": (6, 128, 96)},
        {"head/pixel_decoder/encoder/attention/attention_weights/kernel": (6, 256, 48)},
    ],
)
def test_sizes_whose_heads_shapes_do_not_tell(full, change):
    with pytest.raises(UserError, match="configuration"):
        infer_config(full | change)


def test_what_is_missing_left_over_or_wrong_is_named(full):
    name = "head/mask_decoder/class_head/bias"
    with pytest.raises(UserError, match=f"1 parameters are missing: {name}"):
        check({k: v for k, v in full.items() if k != name}, ModelConfig())
    with pytest.raises(UserError, match=r"1 parameters are not part of the model: reins/more"):
        check(full | {"reins/more": (1,)}, ModelConfig())
    with pytest.raises(UserError, match=rf"{name} has shape \(9,\), .* expects \(7,\)"):
        check(full | {name: (9,)}, ModelConfig())
    other = {name: shape for name, shape in shapes(OTHER).items() if name.startswith("mim/")}
    with pytest.raises(UserError, match="not part of the model: mim/dilated/4/bias"):
        check(other | {"mim/dilated/4/bias": (32,)}, OTHER)


def test_a_torn_set_of_parameters(full):
    torn = {name: shape for name, shape in full.items() if "patch_embed" not in name}
    with pytest.raises(UserError, match=r"no complete model.*patch_embed"):
        infer_config(torn)
