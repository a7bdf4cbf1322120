"""Backbones beside DINOv2 with patches of 16: numbers of transformers, heads, adapters, and the page about them."""

import contextlib
import dataclasses
import io
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from models.conftest import example

from benchmarks.backbones import CASES, config_of, tokens_after_blocks
from crossearth_jax.config import HeadConfig, LoraConfig, MimConfig, ModelConfig, UserError, ViTConfig
from crossearth_jax.models.backbones import BACKBONES, KINDS, find_backbone
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.runtime import parallel
from crossearth_jax.weights.files import read_tensors

GOLDEN = Path(__file__).parents[1] / "golden/backbones"
PAGE = (Path(__file__).parents[2] / "docs/howto/backbones.md").read_text("utf-8")


def transformers_names(tensors):
    return tensors


def published_names(tensors):
    """Return the names of the files on the hub, as before transformers 5."""
    old = {"q": "attention.query", "k": "attention.key", "v": "attention.value", "o": "output.dense"}
    renamed = {}
    for name, tensor in tensors.items():
        name = re.sub(r"^model\.layer\.", "layer.", name)  # DINOv3
        if name.startswith("encoder."):
            name = re.sub(r"attention\.([qkvo])_proj", lambda match: f"attention.{old[match[1]]}", name)
        renamed[name] = tensor
    return renamed


def official_names(tensors):
    """Return the names of Meta's files; DINOv3's also have a bias of keys that its mask switches off."""
    dinov3 = "rope" if not any("position_embeddings" in name for name in tensors) else ""
    renamed = {}
    for name, tensor in tensors.items():
        name = re.sub(r"^(model\.|encoder\.)?layer\.", "blocks.", name)
        name = name.replace("embeddings.position_embeddings", "pos_embed").replace("layernorm.", "norm.")
        name = re.sub(r"embeddings\.patch_embeddings(\.projection)?", "patch_embed.proj", name)
        name = name.replace("embeddings.register_tokens", "storage_tokens" if dinov3 else "register_tokens")
        name = re.sub(r"layer_scale(\d)\.lambda1", r"ls\1.gamma", name.replace("embeddings.", ""))
        name = name.replace("attention.o_proj", "attn.proj")
        if dinov3 and any("gate_proj" in other for other in tensors):
            name = name.replace("gate_proj", "w1").replace("up_proj", "w2").replace("down_proj", "w3")
        else:
            name = name.replace("up_proj", "fc1").replace("down_proj", "fc2")
        if match := re.fullmatch(r"(blocks\.\d+)\.attention\.([qkv])_proj\.(\w+)", name):
            renamed.setdefault(f"{match[1]}.attn.qkv.{match[3]}", {})[match[2]] = tensor
        else:
            renamed[name] = tensor
    for name, parts in renamed.items():
        if isinstance(parts, dict):
            keys = parts.get("k", np.full_like(parts["q"], 7.0))
            renamed[name] = np.concatenate([parts["q"], keys, parts["v"]])
    if dinov3:
        width = tensors["norm.bias"].size
        blocks = {name.rpartition(".mlp")[0] for name in renamed if ".mlp." in name}
        renamed |= {f"{b}.attn.qkv.bias_mask": np.repeat(np.float32([1, 0, 1]), width) for b in blocks}
        renamed["rope_embed.periods"] = np.float32([1, 10])
        renamed |= {f"local_cls_norm.{kind}": np.ones(width, np.float32) for kind in ("weight", "bias")}  # SAT-493M
    return renamed


@pytest.mark.parametrize("names", [transformers_names, published_names, official_names])
@pytest.mark.parametrize("case", CASES)
def test_tokens_after_every_block_are_those_of_transformers(case, names):
    tensors = read_tensors(GOLDEN / f"{case}.safetensors").tensors
    images = rearrange(tensors.pop("expected.image"), "b c h w -> b h w c")
    expected = tensors.pop("expected.states")
    renamed = names(tensors)
    assert names is transformers_names or renamed.keys() != tensors.keys()
    found = tokens_after_blocks(config_of(case, "tiny"), renamed, images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def small(name, **change):
    """Return a backbone of a few channels with the properties of a published one."""
    sizes = {"width": 16, "depth": 4, "heads": 2, "mlp_width": 16, "feature_blocks": (0, 1, 2, 3)}
    return dataclasses.replace(BACKBONES[name], **sizes, **change)


@pytest.mark.parametrize("size", [(512, 512), (28, 32)])
def test_images_that_do_not_consist_of_whole_patches_are_refused(size):
    model = SegmentationModel(ModelConfig(vit=small("dinov2_vits14"), reins=None, head=None))
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    with pytest.raises(UserError, match=f"the image is {size[0]} x {size[1]}; sides must be multiples of 14"):
        jax.eval_shape(model.features, model.shapes(), images)


@pytest.mark.parametrize("kind", ["mask2former", "fcn", "linear"])
def test_heads_score_every_pixel_of_an_image_of_patches_of_14(kind):
    head = HeadConfig(kind=kind, width=8, heads=2, groups=2, encoder_layers=1, decoder_layers=1, queries=4)
    config = ModelConfig(vit=small("dinov2_vits14_reg"), reins=None, head=head, mim=MimConfig(width=8, image_size=32))
    model = SegmentationModel(config)

    def run(params, images):
        return model.scores(params, images), model.reconstruct(params, model.features(params, images).levels)

    # 37 patches along a side: the levels have 148, 74, 37 and 18 rows.
    scores, pixels = jax.eval_shape(run, model.shapes(), jax.ShapeDtypeStruct((1, 518, 98, 3), jnp.float32))
    assert scores.shape == (1, 518, 98, 6) and pixels.shape == (1, 32, 32, 3)


def test_scores_of_a_patch_of_14_lie_at_its_place():
    """A linear head that reads the first channel of the patch embedding finds the bright patch where it is."""
    vit = small("dinov2_vits14", image_size=70)
    model = SegmentationModel(ModelConfig(classes=2, vit=vit, reins=None, head=HeadConfig(kind="linear")))
    params = {name: np.zeros(spec.shape, np.float32) for name, spec in model.shapes().items()}
    params["backbone/patch_embed/kernel"][..., 0] = 1 / 14**2
    params["head/classifier/kernel"][0, 0, 0, 1] = 1
    images = np.zeros((1, 70, 98, 3), np.float32)
    images[:, 28:42, 70:84] = 1
    scores = np.asarray(jax.jit(model.scores)(params, images))[0, ..., 1]
    assert np.argwhere(scores > scores.max() - 1e-4).tolist() == [[34, 76], [34, 77], [35, 76], [35, 77]]  # its centre
    rows, columns = np.where(scores > 0.5001)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (21, 48, 63, 90)  # bilinear: half a patch around


@pytest.mark.parametrize("adapter", ["rein", "earth_adapter"])
def test_adapters_do_not_refine_registers(adapter):
    vit = small("dinov3_vits16")
    model = SegmentationModel(ModelConfig(vit=vit, adapter=adapter, head=HeadConfig(kind="linear")))
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(0.3 * rng.standard_normal(s.shape), jnp.float32) for name, s in model.shapes().items()}
    # Without attention and MLP a block changes nothing, so that tokens change by refinement only.
    params |= {name: jnp.zeros_like(x) for name, x in params.items() if name.endswith(("gain1", "gain2"))}
    images = jnp.asarray(rng.standard_normal((1, 32, 48, 3)), jnp.float32)

    @jax.jit
    def run(params, images):
        network = model.network(params)
        backbone, adapter = network.encoder
        return backbone.embed(images), backbone.tokens_after((3,), images, adapter)[0]

    before, after = run(params, images)
    np.testing.assert_array_equal(after.prefix, before[:, :5])
    assert np.abs(after.patches.reshape(1, 6, 16) - before[:, 5:]).max(-1).min() > 1e-3


def test_lora_adapts_the_projection_whose_keys_have_no_bias():
    config = ModelConfig(
        vit=small("dinov3_vits16", layer_scale=1.0), adapter="lora", lora=LoraConfig(rank=2), head=None
    )
    lora, plain = SegmentationModel(config), SegmentationModel(dataclasses.replace(config, adapter="none"))
    params = jax.jit(lora.init)(jax.random.key(0))
    images = jnp.asarray(np.random.default_rng(0).standard_normal((1, 32, 48, 3)), jnp.float32)
    found, expected = (jax.jit(model.features)(params, images).levels[-1] for model in (lora, plain))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    changed = params | {"adapter/layers/qkv/up": jnp.ones_like(params["adapter/layers/qkv/up"])}
    assert not np.allclose(jax.jit(lora.features)(changed, images).levels[-1], expected, atol=1e-6)


def test_the_bias_of_keys_is_not_trained():
    vit = small("dinov3_vits16")
    model = SegmentationModel(ModelConfig(vit=vit, reins=None, head=None))
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(0.3 * rng.standard_normal(s.shape), jnp.float32) for name, s in model.shapes().items()}
    images = jnp.asarray(rng.standard_normal((1, 32, 48, 3)), jnp.float32)
    loss = lambda params: sum(jnp.sum(jnp.sin(x)) for x in model.features(params, images).levels)  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(params)["backbone/blocks/attention/qkv/bias"]
    query, key, value = np.split(np.abs(gradient), 3, axis=-1)
    assert query.min() > 0 and key.max() == 0 and value.min() > 0


def test_rotary_positions_in_bfloat16():
    """The tokens stay in float32; the features differ by the rounding of the products only."""
    rng, found = np.random.default_rng(0), []
    images = jnp.asarray(rng.standard_normal((1, 64, 96, 3)), jnp.float32)
    for dtype in ("float32", "bfloat16"):
        model = SegmentationModel(ModelConfig(vit=small("dinov3_vits16"), reins=None, head=None, dtype=dtype))
        rng = np.random.default_rng(1)
        params = {k: jnp.asarray(0.3 * rng.standard_normal(s.shape), jnp.float32) for k, s in model.shapes().items()}
        found.append(jax.jit(model.features)(params, images).levels[-1])
    assert found[1].dtype == jnp.float32
    np.testing.assert_allclose(found[1], found[0], atol=0.03 * float(jnp.abs(found[0]).max()))


@pytest.mark.parametrize("name", BACKBONES)
def test_crops_fit(name):
    for side, largest in ((512, 512), (1000, 1000), (10, 32)):
        vit, crop = find_backbone(name, side)
        assert crop % (2 * vit.patch_size) == 0 and crop <= largest and vit.image_size % vit.patch_size == 0
        assert vit.image_size == (518 if vit.patch_size == 14 else crop)


def test_axes_of_registers():
    axes = SegmentationModel(ModelConfig(vit=small("dinov3_vits16"), reins=None, head=None)).axes()
    assert axes["backbone/registers"] == (None, "embed") and "embed" in parallel.MESH_AXES
    assert "backbone/position" not in axes


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match=r"there is no backbone 'dinov3_vitx16', expected one of dinov2_vits16, "):
        find_backbone("dinov3_vitx16", 512)
    with pytest.raises(UserError, match=r"model\.vit\.kind is 'resnet', expected one of vit"):
        SegmentationModel(ModelConfig(vit=ViTConfig(kind="resnet"))).shapes()


def test_the_page_gives_the_numbers_of_parameters_that_its_command_prints():
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(example(PAGE, "print("), {})
    numbers = dict(line.split() for line in printed.getvalue().splitlines())
    assert numbers.keys() == BACKBONES.keys()
    for name, number in numbers.items():
        assert re.search(rf"^\| `{name}`[^|]*\|.*\| {int(number):,} \|", PAGE, re.MULTILINE), f"{name}: {int(number):,}"


def test_the_example_of_a_new_backbone_works(monkeypatch):
    monkeypatch.setattr("crossearth_jax.models.backbones.KINDS", dict(KINDS))  # the example adds a line
    exec(example(PAGE, "class Convolutions"), {})
    vit = ViTConfig(kind="convolutions", patch_size=8, width=4, depth=4, feature_blocks=(0, 1, 2, 3))
    model = SegmentationModel(ModelConfig(classes=2, vit=vit, reins=None, head=HeadConfig(kind="linear")))
    scores = jax.jit(model.scores)(jax.jit(model.init)(jax.random.key(0)), np.zeros((1, 16, 32, 3), np.float32))
    np.testing.assert_allclose(scores.sum(-1), np.ones((1, 16, 32)), rtol=1e-6)
