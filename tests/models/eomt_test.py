"""EoMT compared with Hugging Face's implementation, the mask annealing by hand, and training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crossearth_jax.config import HeadConfig, LossConfig, ModelConfig, UserError, ViTConfig
from crossearth_jax.inference.segmentor import load
from crossearth_jax.losses.segmentation import segmentation_loss
from crossearth_jax.models.eomt import mask_probabilities
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.models.segmentation_head import Training
from crossearth_jax.runtime import parallel
from crossearth_jax.training.program import build_program
from crossearth_jax.weights.native import Description, save_native

MODEL = ModelConfig(
    classes=3,
    vit=ViTConfig(image_size=64, width=16, depth=4, heads=2, mlp_width=16, feature_blocks=(0, 1, 2, 3)),
    reins=None,
    head=HeadConfig(kind="eomt", queries=4, last_blocks=2),
)
# With the blocks of DINOv3: rotary positions, registers, no bias of the keys.
ROTARY = dataclasses.replace(MODEL, vit=dataclasses.replace(MODEL.vit, position="rope", registers=2, key_bias=False))
AT_FIRST = Training(jnp.zeros(()), jax.random.key(0))  # every query is restricted to its mask


def converted(weights, rotary):
    """Return Hugging Face's weights under our names."""
    output, first, second = ("o_proj", "up_proj", "down_proj") if rotary else ("out_proj", "fc1", "fc2")

    def affine(theirs, ours, kernel="kernel", change=lambda x: x.T):
        return {f"{ours}/{kernel}": change(weights[f"{theirs}.weight"]), f"{ours}/bias": weights[f"{theirs}.bias"]}

    def to_hwio(kernel):
        return kernel.transpose(2, 3, 1, 0)

    def norm(theirs, ours):
        return affine(theirs, ours, "scale", lambda x: x)

    def block(i):
        packed = [f"layers.{i}.attention.{part}_proj" for part in "qkv"]
        biases = [weights.get(f"{name}.bias", np.zeros(16)) for name in packed]
        return {
            **norm(f"layers.{i}.norm1", "norm1"),
            **norm(f"layers.{i}.norm2", "norm2"),
            "attention/qkv/kernel": np.concatenate([weights[f"{name}.weight"] for name in packed]).T,
            "attention/qkv/bias": np.concatenate(biases),
            **affine(f"layers.{i}.attention.{output}", "attention/proj"),
            **affine(f"layers.{i}.mlp.{first}", "mlp/fc1"),
            **affine(f"layers.{i}.mlp.{second}", "mlp/fc2"),
            "gain1": weights[f"layers.{i}.layer_scale1.lambda1"],
            "gain2": weights[f"layers.{i}.layer_scale2.lambda1"],
        }

    blocks = [block(i) for i in range(4)]
    embedding = "embeddings.patch_embeddings" if rotary else "embeddings.patch_embeddings.projection"
    params = {
        **affine(embedding, "backbone/patch_embed", change=to_hwio),
        "backbone/class_token": weights["embeddings.cls_token"][0, 0],
        **{f"backbone/blocks/{name}": np.stack([one[name] for one in blocks]) for name in blocks[0]},
        "head/queries": weights["query.weight"],
        **norm("layernorm", "head/norm"),
        **affine("class_predictor", "head/class_head"),
    }
    if rotary:
        params["backbone/registers"] = weights["embeddings.register_tokens"][0]
    else:
        positions = weights["embeddings.position_embeddings.weight"]  # of the patches only
        params["backbone/position"] = np.concatenate([np.zeros_like(positions[:1]), positions])
    for i in range(3):
        params |= affine(f"mask_head.fc{i + 1}", f"head/mask_head/{i}")
    for i in range(2):
        theirs, ours = f"upscale_block.block.{i}", f"head/upscale/{i}"
        params[f"{ours}/kernel"] = weights[f"{theirs}.conv1.weight"].transpose(2, 3, 0, 1)
        params[f"{ours}/bias"] = weights[f"{theirs}.conv1.bias"]
        params[f"{ours}/depthwise/kernel"] = to_hwio(weights[f"{theirs}.conv2.weight"])
        params |= norm(f"{theirs}.layernorm2d", f"{ours}/norm")
    return {name: jnp.asarray(x, jnp.float32) for name, x in params.items()}


def read(stored, rotary):
    """Return the parameters, the images and all stored arrays."""
    weights = {name.removeprefix("weights/"): x for name, x in stored.items() if name.startswith("weights/")}
    return converted(weights, rotary), jnp.asarray(stored["images"].transpose(0, 2, 3, 1), jnp.float32), stored


@pytest.fixture(scope="module")
def oracle(golden):
    return read(golden("eomt"), rotary=False)


@pytest.mark.parametrize(("name", "config"), [("eomt", MODEL), ("eomt_dinov3", ROTARY)])
def test_predictions_of_all_blocks_equal_hugging_face(golden, name, config):
    params, images, stored = read(golden(name), config is ROTARY)
    model = SegmentationModel(config)
    assert params.keys() == model.shapes().keys()

    @jax.jit
    def predict(params, images):
        features = model.features(params, images, for_head_only=True)
        return model.decode(params, features, AT_FIRST), model.decode(params, features)

    masked, free = predict(params, images)
    assert masked.mask_logits.shape == (3, 2, 4, 16, 16) and free.mask_logits.shape == (1, 2, 4, 16, 16)
    # The attention masks are neither empty nor full, so that they are part of the comparison.
    assert 0.1 < (stored["masked/masks"][:2] > 0).mean() < 0.9
    assert np.abs(stored["masked/masks"][-1] - stored["free/masks"][0]).max() > 0.1
    for case, found in (("masked", masked), ("free", free)):
        np.testing.assert_allclose(found.class_logits, stored[f"{case}/classes"], rtol=0, atol=1e-4)
        np.testing.assert_allclose(found.mask_logits, stored[f"{case}/masks"], rtol=0, atol=1e-4)


def test_the_levels_are_those_of_a_backbone_without_queries(oracle):
    """The reconstruction head sees the same features beside EoMT as beside any other head."""
    params, images, _ = oracle
    whole = jax.jit(SegmentationModel(MODEL).features)(params, images)
    plain = SegmentationModel(dataclasses.replace(MODEL, head=HeadConfig(kind="linear")))
    fake = {name: jnp.zeros(shape.shape) for name, shape in plain.shapes().items()}
    for found, expected in zip(whole.levels, jax.jit(plain.features)(fake | params, images).levels, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(whole.tokens.patches, whole.levels[1])  # the queries join after block 1


def test_mask_annealing_by_hand():
    """Of four blocks the first is annealed in the second sixth of the training, the last in the fifth."""

    def at(progress):
        return np.asarray(mask_probabilities(jnp.asarray(progress), 4, 0.9))

    np.testing.assert_array_equal(at(0.0), [1, 1, 1, 1])
    np.testing.assert_allclose(at(1 / 6), [1, 1, 1, 1], atol=1e-5)
    np.testing.assert_allclose(at(0.25), [0.5**0.9, 1, 1, 1], atol=1e-5)
    np.testing.assert_allclose(at(0.375), [0, 0.75**0.9, 1, 1], atol=1e-5)
    np.testing.assert_allclose(at(0.8), [0, 0, 0, 0.2**0.9], atol=1e-5)
    np.testing.assert_array_equal(at(0.9), [0, 0, 0, 0])


def test_queries_are_masked_with_the_probability(oracle):
    head = SegmentationModel(MODEL).network(oracle[0]).head
    masks = jnp.full((500, 4, 16, 16), -1.0).at[:, :, :4, :4].set(1.0)  # positive on the first of 4 x 4 patches
    allowed = np.asarray(head.attention_mask(masks, (4, 4), 21, jnp.asarray(0.3), jax.random.key(0)))
    assert allowed.shape == (500, 21, 21)
    assert allowed[:, :17].all() and allowed[:, :, 0].all() and allowed[:, :, 17:].all()
    to_patches = allowed[:, 17:, 1:17]
    assert to_patches[..., 0].all()
    restricted = ~to_patches.all(-1)
    assert not to_patches[restricted][:, 1:].any()
    assert abs(restricted.mean() - 0.3) < 0.05  # 2000 choices: four standard deviations are 0.041


def test_more_blocks_than_the_backbone_has(tiny_config):
    head = HeadConfig(kind="eomt", last_blocks=4)
    with pytest.raises(UserError, match=r"model\.head\.last_blocks is 4, expected less than model\.vit\.depth = 4"):
        SegmentationModel(dataclasses.replace(MODEL, head=head)).shapes()


def with_eomt(config):
    """Return the small configuration with EoMT, Rein adapters and both tasks."""
    head = HeadConfig(kind="eomt", queries=6, last_blocks=2)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, head=head))


def test_training_with_a_frozen_backbone_and_rein_lowers_the_loss(tiny_config):
    """Queries and head learn beside the adapters while the masks are annealed, and every prediction has a loss."""
    config = with_eomt(tiny_config).model
    config = dataclasses.replace(config, mim=None, vit=dataclasses.replace(config.vit, layer_scale=1.0, remat="none"))
    model = SegmentationModel(config)
    params = jax.jit(model.init)(jax.random.key(0))
    frozen = {name: params.pop(name) for name in list(params) if name.startswith("backbone/")}
    labels = np.zeros((4, 16, 16), np.uint8)
    labels[:2, :, 8:] = labels[2:, 8:] = 1
    images = jnp.asarray(2.0 * labels[..., None] - 1 + 0.2 * np.random.default_rng(0).normal(size=(4, 16, 16, 3)))
    optimizer, steps = optax.adam(1e-2), 30

    @jax.jit
    def step(state, i):
        def loss(trainable):
            training = Training(i / steps, jax.random.fold_in(jax.random.key(1), i))
            features = model.features(trainable | frozen, images, for_head_only=True)
            predictions = model.decode(trainable | frozen, features, training)
            terms = segmentation_loss(LossConfig(points=64), training.key, predictions, jnp.asarray(labels))
            return sum(terms.values()), terms

        trainable, moments = state
        (_, terms), gradients = jax.value_and_grad(loss, has_aux=True)(trainable)
        updates, moments = optimizer.update(gradients, moments)
        return (optax.apply_updates(trainable, updates), moments), terms

    state, found = (params, optimizer.init(params)), []
    for i in range(steps):
        state, terms = step(state, i)
        found.append(jax.device_get(terms))
    assert found[0].keys() == {f"{term}/{name}" for term in ("class", "mask", "dice") for name in ("0", "1", "last")}
    for name in ("mask/last", "dice/last", "class/last"):
        assert found[-1][name] < 0.5 * found[0][name], (name, found[0][name], found[-1][name])
    for name in ("head/queries", "head/norm/scale", "head/upscale/0/kernel", "reins/tokens_a", "reins/scale"):
        assert jnp.abs(state[0][name] - params[name]).max() > 0, name


def test_a_step_of_both_tasks_and_styles_in_micro_batches(tiny_config):
    config = with_eomt(tiny_config)
    assert config.optimizer.accumulate == 2
    program = build_program(config, parallel.make_mesh(config.mesh))
    batch = {"image": jax.ShapeDtypeStruct((16, 64, 64, 3), jnp.uint8)}
    batch["label"] = jax.ShapeDtypeStruct((16, 64, 64), jnp.uint8)
    _, metrics = jax.eval_shape(program.step, program.state, program.frozen, batch)
    assert {"loss/mask/last", "loss/mim/masked", "loss/mim/styled"} <= metrics.keys()


def test_a_file_with_eomt_predicts(tmp_path):
    model = SegmentationModel(MODEL)
    save_native(tmp_path / "model.safetensors", jax.jit(model.init)(jax.random.key(0)), Description(model=MODEL))
    image = np.random.default_rng(0).integers(0, 256, (1, 40, 65, 3), np.uint8)
    labels = load(tmp_path / "model.safetensors").predict(image)
    assert labels.shape == (1, 40, 65) and labels.max() < 3
