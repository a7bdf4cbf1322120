"""DINOv2 and DINOv3 files: resizing compared with PyTorch, names with the features that transformers computes."""

import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from einops import rearrange

from crossearth_jax.config import HeadConfig, ModelConfig, UserError, ViTConfig
from crossearth_jax.models.backbones import BACKBONES
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.weights import infer
from crossearth_jax.weights.dino import original_names, resize_kernel, resize_positions, to_backbone
from crossearth_jax.weights.files import read_tensors
from crossearth_jax.weights.reference_names import from_reference

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def resized():
    with np.load(FIXTURES / "resized.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def hugging_face():
    tensors = read_tensors(FIXTURES / "hugging_face.safetensors").tensors
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("expected.")}


def test_patch_kernel_equals_torch(resized):
    np.testing.assert_allclose(resize_kernel(resized["kernel"], 16), resized["kernel16"], rtol=0, atol=2e-6)


# At 20 patches PyTorch's sample positions in float32 have errors of up to 4e-6 of a cell.
@pytest.mark.parametrize(("side", "atol"), [(32, 2e-6), (64, 2e-6), (20, 2e-5)])
def test_positions_equal_torch_and_the_class_position_stays(resized, side, atol):
    found = resize_positions(resized["positions"], side)
    np.testing.assert_allclose(found, resized[f"positions{side}"], rtol=0, atol=atol)
    np.testing.assert_array_equal(found[:, 0], resized["positions"][:, 0])


def original(depth=2, width=8, hidden=12, chunked=False):
    """Return a small backbone under the original names."""
    random = np.random.default_rng(0)
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1370, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, 14, 14),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for i in range(depth):
        block = f"blocks.{i // 2}.{i}" if chunked else f"blocks.{i}"
        for name, shape in {
            "norm1.weight": (width,),
            "norm1.bias": (width,),
            "attn.qkv.weight": (3 * width, width),
            "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "ls1.gamma": (width,),
            "norm2.weight": (width,),
            "norm2.bias": (width,),
            "mlp.fc1.weight": (hidden, width),
            "mlp.fc1.bias": (hidden,),
            "mlp.fc2.weight": (width, hidden),
            "mlp.fc2.bias": (width,),
            "ls2.gamma": (width,),
        }.items():
            shapes[f"{block}.{name}"] = shape
    return {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(("image_size", "side"), [(None, 32), (512, 32), (1024, 64), (320, 20)])
def test_original_file_for_any_image_size(image_size, side):
    tensors = original()
    found = to_backbone(tensors, image_size)
    assert found["backbone.pos_embed"].shape == (1, 1 + side * side, 8)
    assert found["backbone.patch_embed.proj.weight"].shape == (8, 3, 16, 16)
    rest = [name for name in tensors if name not in ("pos_embed", "patch_embed.proj.weight")]
    assert all(np.array_equal(found[f"backbone.{name}"], tensors[name]) for name in rest)
    assert from_reference(found)["backbone/blocks/mlp/fc1/kernel"].shape == (2, 8, 12)


def test_blocks_in_chunks_and_a_prefix_are_the_same_file():
    plain, chunked = original(depth=4), original(depth=4, chunked=True)
    assert "blocks.1.3.norm1.bias" in chunked
    for found in (original_names(chunked), original_names({f"backbone.{k}": v for k, v in plain.items()})):
        assert set(found) == set(plain) and all(np.array_equal(found[name], plain[name]) for name in plain)


OLD_NAMES = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.down_proj": "mlp.weights_out",
}


def published_names(tensors):
    """Return the names of the published files: as before transformers 5, and with the packed gated layer."""
    renamed = {}
    for name, tensor in tensors.items():
        for new, old in OLD_NAMES.items():
            name = name.replace(new, old)
        if "gate_proj" in name:
            up = tensors[name.replace("gate_proj", "up_proj")]
            renamed["dinov2." + name.replace("gate_proj", "weights_in")] = np.concatenate([tensor, up])
        elif "up_proj" not in name:
            renamed["dinov2." + name] = tensor
    return renamed


@pytest.fixture(scope="module")
def features():
    config = ViTConfig(
        image_size=32, width=16, depth=2, heads=2, mlp_width=48, swiglu=True, feature_blocks=(0, 1), remat="none"
    )
    head = HeadConfig(width=16, heads=2, groups=2, encoder_layers=1, decoder_layers=1)
    model = SegmentationModel(ModelConfig(vit=config, reins=None, head=head))
    shapes = model.shapes()

    @jax.jit
    def run(params, images):
        zeros = {name: jax.numpy.zeros(spec.shape) for name, spec in shapes.items() if name not in params}
        return model.network(zeros | params).backbone(images)

    return lambda tensors, images: run({k: v for k, v in from_reference(tensors).items() if k in shapes}, images)


@pytest.mark.parametrize("names", [lambda tensors: tensors, published_names])
def test_hugging_face_names_give_the_numbers_of_transformers(hugging_face, features, names):
    expected = read_tensors(FIXTURES / "hugging_face.safetensors").tensors
    images = rearrange(expected["expected.image"], "b c h w -> b h w c")
    found = features(to_backbone(names(hugging_face)), images)
    for level, state in zip(found, expected["expected.states"], strict=True):
        np.testing.assert_allclose(level, rearrange(state[:, 1:], "b (h w) c -> b h w c", h=2), rtol=0, atol=2e-5)


def test_patches_of_14_are_kept_on_request():
    tensors = original()
    found = to_backbone(tensors, patch_size=14)
    assert all(np.array_equal(found[f"backbone.{name}"], tensors[name]) for name in tensors)
    found = to_backbone(tensors, image_size=448, patch_size=14)
    expected = resize_positions(tensors["pos_embed"], 32)
    np.testing.assert_array_equal(found["backbone.pos_embed"], expected)
    np.testing.assert_array_equal(found["backbone.patch_embed.proj.weight"], tensors["patch_embed.proj.weight"])
    with pytest.raises(UserError, match="the image size is 512, expected a multiple of the patch size, 14"):
        to_backbone(tensors, image_size=512, patch_size=14)
    with pytest.raises(UserError, match="has patches of 16 pixels, expected 14; use the original file"):
        to_backbone({k.removeprefix("backbone."): v for k, v in to_backbone(tensors).items()}, patch_size=14)


def test_positions_of_a_model_with_registers_are_resized_with_antialiasing():
    """A pattern that alternates between neighbours vanishes when the table shrinks; without antialiasing it stays."""
    table = np.where(np.indices((37, 37)).sum(0) % 2, 1.0, -1.0).reshape(1, -1, 1).repeat(8, axis=2)
    table = np.concatenate([np.zeros((1, 1, 8)), table], axis=1).astype(np.float32)
    tensors = original() | {"register_tokens": np.ones((1, 4, 8), np.float32), "pos_embed": table}
    found = to_backbone(tensors, image_size=256)
    assert np.abs(found["backbone.pos_embed"]).max() < 0.1
    assert from_reference(found)["backbone/registers"].shape == (4, 8)
    del tensors["register_tokens"]
    assert np.abs(to_backbone(tensors, image_size=256)["backbone.pos_embed"]).max() > 0.5


def dinov3(width=8):
    """Return a small DINOv3 under the original names."""
    tensors = {name: x for name, x in original(width=width).items() if name != "pos_embed"}
    kernel = np.random.default_rng(1).standard_normal((width, 3, 16, 16), np.float32)
    return tensors | {
        "storage_tokens": np.ones((1, 4, width), np.float32),
        "rope_embed.periods": np.float32([1.0, 10.0]),
        "patch_embed.proj.weight": kernel,
    }


def test_what_dinov3_does_not_express_is_refused():
    assert "backbone.register_tokens" in to_backbone(dinov3())
    with pytest.raises(UserError, match=r"rope_embed\.periods are \[ *1\. +100\.\], expected those of DINOv3"):
        to_backbone(dinov3() | {"rope_embed.periods": np.float32([1.0, 100.0])})
    with pytest.raises(
        UserError, match=r"this DINOv3 has patches of 16 pixels, expected 14; set model\.vit\.patch_size"
    ):
        to_backbone(dinov3(), patch_size=14)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos_embed": None}, "pos_embed is missing"),
        ({"pos_embed": np.zeros((1, 1369, 8), np.float32)}, "do not have DINOv2's shapes"),
        ({"patch_embed.proj.weight": np.zeros((8, 3), np.float32)}, "do not have DINOv2's shapes"),
    ],
)
def test_other_models_are_refused(change, message):
    tensors = {k: v for k, v in (original() | change).items() if v is not None}
    with pytest.raises(UserError, match=message):
        to_backbone(tensors)


def test_a_converted_file_stays_as_it_is():
    converted = {k.removeprefix("backbone."): v for k, v in to_backbone(original(), 512).items()}
    again = to_backbone(converted)
    assert all(np.array_equal(again[f"backbone.{name}"], converted[name]) for name in converted)
    with pytest.raises(UserError, match="converted for images of 512 x 512, not 1024 x 1024"):
        to_backbone(converted, 1024)
    with pytest.raises(UserError, match="expected a multiple of the patch size, 16"):
        to_backbone(original(), 500)


def test_a_missing_projection_is_named(hugging_face):
    name = "encoder.layer.1.attention.k_proj.bias"
    with pytest.raises(UserError, match=name):
        to_backbone({k: v for k, v in hugging_face.items() if k != name})


SIZES = {  # width, depth, heads, hidden width; of the paper's table (arXiv 2304.07193, appendix)
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "g": (1536, 40, 24, 4096),
}


def full_size(width, depth, hidden, gated):
    """Return a backbone of zeros, which take no memory, under the original names."""
    shapes = {name: np.shape(x) for name, x in original(depth, 2, 1).items()}
    sizes = {"fc1.weight": (hidden, width), "fc1.bias": (hidden,), "fc2.weight": (width, hidden)}
    sizes |= {"qkv.weight": (3 * width, width), "qkv.bias": (3 * width,), "attn.proj.weight": (width, width)}
    sizes |= {"patch_embed.proj.weight": (width, 3, 14, 14), "pos_embed": (1, 1370, width)}
    sizes |= {"cls_token": (1, 1, width), "mask_token": (1, width)}
    for name in shapes:
        shapes[name] = next((size for ending, size in sizes.items() if name.endswith(ending)), (width,))
    if gated:
        shapes = {name: shape for name, shape in shapes.items() if ".mlp." not in name}
        for i in range(depth):
            mlp = f"blocks.{i}.mlp"
            shapes |= {f"{mlp}.w12.weight": (2 * hidden, width), f"{mlp}.w12.bias": (2 * hidden,)}
            shapes |= {f"{mlp}.w3.weight": (width, hidden), f"{mlp}.w3.bias": (width,)}
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_is_recognised_by_its_shapes(name):
    config = ModelConfig(vit=BACKBONES[name], reins=None, head=None)
    shapes = infer.shapes_of(SegmentationModel(config).shapes())
    # The shapes do not say which blocks are features, and on which images the weights were trained.
    fixed = {"feature_blocks": config.vit.feature_blocks, "pixel_statistics": config.vit.pixel_statistics}
    assert dataclasses.replace(infer.infer_config(shapes).vit, **fixed) == config.vit


@pytest.mark.parametrize("size", SIZES)
def test_the_four_published_sizes_are_recognised(size):
    width, depth, heads, hidden = SIZES[size]
    tensors = to_backbone(full_size(width, depth, hidden, size == "g"))
    # All layers have the same shapes, so two of them are enough for the test and take much less memory than 40.
    shapes = infer.shapes_of(from_reference({k: v for k, v in tensors.items() if ".blocks." not in k}))
    block = {k: v for k, v in tensors.items() if re.match(r"backbone\.blocks\.[01]\.", k)}
    stacked = infer.shapes_of(from_reference(block))
    shapes |= {name: (depth, *shape[1:]) for name, shape in stacked.items()}
    vit = infer.infer_config(shapes).vit
    found = (vit.width, vit.depth, vit.heads, vit.mlp_width, vit.swiglu, vit.image_size, vit.patch_size)
    assert found == (width, depth, heads, hidden, size == "g", 512, 16)
    infer.check(shapes, ModelConfig(vit=vit))


def hugging_face_names(tensors):
    """Return S, B or L under the names of the published files: separate projections, and fc1 and fc2 as the MLP."""
    renamed = {}
    for name, tensor in tensors.items():
        name = re.sub(r"^(cls_token|mask_token)$", r"embeddings.\1", name)
        name = name.replace("pos_embed", "embeddings.position_embeddings")
        name = name.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
        name = re.sub(r"^norm\.", "layernorm.", name.replace("blocks.", "encoder.layer."))
        name = re.sub(r"\.ls(\d)\.gamma", r".layer_scale\1.lambda1", name)
        name = name.replace("attn.proj", "attention.output.dense")
        if "attn.qkv" in name:
            for part, third in zip(("query", "key", "value"), np.split(tensor, 3), strict=True):
                renamed[name.replace("attn.qkv", f"attention.attention.{part}")] = third
        else:
            renamed[name] = tensor
    return renamed


@pytest.mark.parametrize("prefix", ["", "dinov2."])
def test_ungated_hugging_face_names_are_the_original_file(prefix):
    tensors = original()
    found = original_names({prefix + name: x for name, x in hugging_face_names(tensors).items()})
    assert set(found) == set(tensors) and all(np.array_equal(found[name], tensors[name]) for name in tensors)
