"""Every stage of the network compared with the reference's golden numbers, and the interface of `SegmentationModel`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from jax.sharding import NamedSharding, PartitionSpec

from crossearth_jax.config import ModelConfig, UserError, ViTConfig
from crossearth_jax.inference.windows import SlidingWindows
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.models.pixel_decoder import LEVELS
from crossearth_jax.ops.resize import resize_bilinear, scale_bilinear

PYRAMID = (4.0, 2.0, 1.0, 0.5)
CASES = ("forward", "forward_nonsquare", "forward_odd")
TOKENS = ("tokens_in", *(f"{kind}{i}_out" for i in range(4) for kind in ("block", "reins")))
MAPS = (*(f"{kind}{i}" for i in range(4) for kind in ("feat_raw", "feat")), "memory0", "memory1", "memory2")
HEAD = ("queries", "pd_enc0_out", "pd_enc1_out", "mask_features", "dec0_out", "dec1_out", "dec2_out")
PREDICTIONS = tuple(f"{kind}_pred{i}" for i in range(4) for kind in ("cls", "mask"))
STAGES = (*TOKENS, *MAPS, *HEAD, *PREDICTIONS, "seg_logits")


def channels_first(x):
    return rearrange(x, "b h w c -> b c h w")


def layer(stacked, i):
    return jax.tree.map(lambda p: p[i], stacked)


def backbone_stages(network, images):
    stages = {"tokens_in": (x := network.backbone.embed(images))}
    for i in range(4):
        stages[f"block{i}_out"] = x = layer(network.backbone.blocks, i)(x)
        refined = network.reins.refine(x, layer(network.reins.per_block(), i), rows=4)
        stages[f"reins{i}_out"] = x = jnp.concatenate([x[:, :1], refined[:, 1:]], axis=1)
    return stages


def encoder_stages(decoder, levels):
    convs = enumerate(decoder.input_convs)
    maps = [block.norm(scale_bilinear(block.conv(levels[3 - i]), PYRAMID[3 - i])) for i, block in convs]
    sizes = [x.shape[1:3] for x in maps]
    x = jnp.concatenate([rearrange(x, "b h w d -> b (h w) d") for x in maps], axis=1)
    stages = {}
    for i in range(2):
        stages[f"pd_enc{i}_out"] = x = layer(decoder.encoder, i)(x, decoder.positions(sizes), sizes)
    return stages


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, images):
    """Return all stages under the names of the golden files, in the reference's layout."""
    network = model.network(params)
    features = model.features(params, images)
    stages = backbone_stages(network, images) | encoder_stages(network.head.pixel_decoder, features.levels)
    for i, (level, factor) in enumerate(zip(features.levels, PYRAMID, strict=True)):
        stages[f"feat_raw{i}"] = channels_first(level)
        stages[f"feat{i}"] = channels_first(scale_bilinear(level, factor))
    pixels = network.head.pixel_decoder(features.levels)
    stages |= {f"memory{i}": channels_first(memory) for i, memory in enumerate(pixels.memories)}
    stages |= {"queries": features.queries, "mask_features": channels_first(pixels.masks)}
    decoder = network.head.mask_decoder
    states = decoder.states(pixels, features.queries)
    for i, state in enumerate(states[:-1]):
        resized = resize_bilinear(pixels.masks, pixels.memories[i % LEVELS].shape[1:3])
        stages[f"attn_mask{i}"] = ~decoder.attention_mask(state, resized)
        stages[f"dec{i}_out"] = states[i + 1]
    for i, (classes, masks) in enumerate(zip(*model.decode(params, features), strict=True)):
        stages |= {f"cls_pred{i}": classes, f"mask_pred{i}": masks}
    return stages | {"seg_logits": channels_first(model.scores(params, images))}


@pytest.fixture(scope="module", params=CASES)
def case(request, golden, tiny_model, tiny_params):
    expected = golden(f"tiny/{request.param}")
    stages = run(tiny_model, tiny_params, rearrange(expected["input"], "b c h w -> b h w c"))
    return request.param, jax.device_get(stages), expected


@pytest.mark.parametrize("stage", STAGES)
def test_stage_equals_the_reference(case, noise, stage):
    name, stages, expected = case
    assert stages[stage].shape == expected[stage].shape
    np.testing.assert_allclose(stages[stage], expected[stage], rtol=0, atol=5 * noise[f"{name}/{stage}"])


@pytest.mark.parametrize("i", range(3))
def test_attention_mask_equals_the_reference(case, i):
    _, stages, expected = case
    np.testing.assert_array_equal(stages[f"attn_mask{i}"], expected[f"attn_mask{i}"].astype(bool))


class Normalised:
    """A normalised image as a raster; pixels outside are zero, the mean colour."""

    def __init__(self, image):
        self.image, self.size = image, image.shape[:2]

    def read(self, top, left, height, width):
        part = self.image[top : top + height, left : left + width]
        beyond = [(0, height - len(part)), (0, width - part.shape[1])]
        return np.pad(part, [*beyond, (0, 0)]), np.pad(np.ones(part.shape[:2], bool), beyond)


@pytest.mark.parametrize("name", ["slide", "slide_small"])
def test_sliding_scores_equal_the_reference(golden, noise, tiny_model, tiny_params, name):
    expected = golden(f"tiny/{name}")
    images = rearrange(expected["input"], "b c h w -> b h w c")  # already normalised; inference passes 8-bit images
    score = jax.jit(functools.partial(tiny_model.scores, tiny_params))
    windows = SlidingWindows(
        score=lambda images, _: score(images),
        classes=expected["seg_logits"].shape[1],
        window=64,
        stride=43,
        multiple=16,
    )
    scores = np.zeros((*images.shape[:3], windows.classes), np.float32)
    for row, image in zip(scores, images, strict=True):
        for area in windows.areas(Normalised(image)):
            row[area.top : area.top + len(area.scores), area.left : area.left + area.scores.shape[1]] = area.scores
    tolerance = 5 * noise["forward/seg_logits"]
    np.testing.assert_allclose(channels_first(scores), expected["seg_logits"], rtol=0, atol=tolerance)
    final = resize_bilinear(jnp.asarray(scores), expected["ori_shape"].tolist())[0]
    np.testing.assert_allclose(rearrange(final, "h w k -> k h w"), expected["post_logits"], rtol=0, atol=tolerance)
    np.testing.assert_array_equal(jnp.argmax(final, axis=-1), expected["post_argmax"][0])


def test_parameter_count_is_the_paper_models():
    sizes = {name: np.prod(s.shape, dtype=int) for name, s in SegmentationModel(ModelConfig()).shapes().items()}
    total = {part: sum(n for name, n in sizes.items() if name.startswith(part)) for part in ("reins", "head")}
    assert total == {"reins": 2_990_081, "head": 20_576_455}
    # The reference's count includes a final norm and a mask token that have no effect.
    assert sum(n for name, n in sizes.items() if name.startswith("backbone")) == 304_199_680 - 3 * 1024


def test_missing_parameters_are_named(tiny_model, tiny_params):
    params = {name: x for name, x in tiny_params.items() if name != "reins/scale"}
    with pytest.raises(UserError, match=r"1 of the model's \d+ parameters are missing, e.g. reins/scale"):
        tiny_model.network(params)


def test_features_end_with_the_last_block():
    with pytest.raises(UserError, match="end with the last block, 3"):
        SegmentationModel(ModelConfig(vit=ViTConfig(depth=4, feature_blocks=(0, 1, 2)))).shapes()


def test_image_of_odd_size_is_refused(tiny_model, tiny_params):
    with pytest.raises(UserError, match="60 x 64; sides must be multiples of 16"):
        tiny_model.features(tiny_params, jnp.zeros((1, 60, 64, 3)))


def test_reconstruction_needs_its_head(tiny_model, tiny_params):
    with pytest.raises(UserError, match="mim is None"):
        tiny_model.reconstruct(tiny_params, ())


def test_without_reins_queries_are_learnt(tiny_model, tiny_params):
    model = SegmentationModel(dataclasses.replace(tiny_model.config, reins=None))
    assert not any(name.startswith("reins/") for name in model.shapes())
    queries = jnp.asarray(np.random.default_rng(0).standard_normal((8, 32)), jnp.float32)
    params = tiny_params | {"head/mask_decoder/queries": queries}
    decoder = model.network(params).head.mask_decoder
    expected = decoder.class_head(decoder.norm(decoder.query_projection(queries)))

    def first_classes(params):
        """Return the class logits before the first layer. They need only the queries, so XLA computes nothing else."""
        return model.decode(params, model.features(params, jnp.zeros((1, 64, 64, 3)))).class_logits[0, 0]

    np.testing.assert_allclose(jax.jit(first_classes)(params), expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_stays_near_float32(golden, tiny_model, tiny_params):
    model = SegmentationModel(dataclasses.replace(tiny_model.config, dtype="bfloat16"))
    images = rearrange(golden("tiny/forward")["input"], "b c h w -> b h w c")
    features = jax.jit(model.features)(tiny_params, images)
    assert {x.dtype for x in features.levels} == {jnp.dtype("float32")}
    expected = golden("tiny/forward")["feat_raw3"]
    # bfloat16 has 8 significant bits: a relative error of 2^-8 per operation, which partly averages out.
    error = np.linalg.norm(channels_first(features.levels[3]) - expected) / np.linalg.norm(expected)
    assert error < 0.02
    predictions = jax.eval_shape(model.decode, tiny_params, features)
    assert {x.dtype for x in predictions} == {jnp.dtype("float32")}


def test_sharded_batch_needs_no_communication(golden, tiny_model, tiny_params):
    images = rearrange(np.repeat(golden("tiny/forward")["input"], 4, axis=0), "b c h w -> b h w c")
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    compiled = jax.jit(tiny_model.scores).lower(tiny_params, jax.device_put(images, split)).compile()
    scores = compiled(tiny_params, jax.device_put(images, split))
    np.testing.assert_allclose(channels_first(scores)[:1], golden("tiny/forward")["seg_logits"][:1], rtol=0, atol=6e-5)
    collectives = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
    assert not [name for name in collectives if name in (compiled.as_text() or "")]
