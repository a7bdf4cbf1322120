"""The light head compared with SciPy, and training and inference of a model with this head."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy.ndimage import correlate, zoom

from crossearth_jax.config import HeadConfig, LossConfig, ModelConfig, ViTConfig
from crossearth_jax.inference.segmentor import load
from crossearth_jax.models.fcn_head import FcnHead
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.runtime import parallel
from crossearth_jax.training.program import build_program
from crossearth_jax.weights.native import Description, save_native

WIDTH, CLASSES, GROUPS = 8, 3, 2


def scipy_conv(x, layer):
    kernel, bias = np.asarray(layer.kernel[...], np.float64), np.asarray(layer.bias[...], np.float64)
    outputs = [
        sum(correlate(x[..., i], kernel[..., i, o], mode="constant") for i in range(x.shape[-1])) + bias[o]
        for o in range(kernel.shape[-1])
    ]
    return np.stack(outputs, axis=-1)


def numpy_group_norm(x, norm):
    grouped = x.reshape(*x.shape[:2], GROUPS, -1)
    mean, variance = (f(grouped, axis=(0, 1, 3), keepdims=True) for f in (np.mean, np.var))
    return ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape) * norm.scale[...] + norm.bias[...]


def test_head_equals_scipy():
    backbone = ViTConfig(width=3, depth=4, feature_blocks=(0, 1, 2, 3), pyramid=(2.0, 1.0, 1.0, 0.5))
    config = ModelConfig(classes=CLASSES, vit=backbone, head=HeadConfig(kind="fcn", width=WIDTH, groups=GROUPS))
    head = FcnHead(config, jnp.dtype("float32"), rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for layer in (head.conv1, head.conv2, head.classifier):
        layer.kernel[...] = jnp.asarray(rng.normal(size=layer.kernel.shape), jnp.float32)
        layer.bias[...] = jnp.asarray(rng.normal(size=layer.bias.shape), jnp.float32)
    levels = [rng.normal(size=(4, 5, 3)) for _ in range(4)]
    x = np.maximum(numpy_group_norm(scipy_conv(np.concatenate(levels, axis=-1), head.conv1), head.norm1), 0)
    # Bilinear, pixel centres at half-integer positions, borders repeated.
    x = np.stack([zoom(x[..., i], 2, order=1, mode="nearest", grid_mode=True) for i in range(WIDTH)], axis=-1)
    x = np.maximum(numpy_group_norm(scipy_conv(x, head.conv2), head.norm2), 0)
    found = head(tuple(jnp.asarray(level[None], jnp.float32) for level in levels))
    np.testing.assert_allclose(found[0], scipy_conv(x, head.classifier), rtol=2e-4, atol=2e-4)


def with_light_head(config):
    model = dataclasses.replace(config.model, head=dataclasses.replace(config.model.head, kind="fcn"))
    return dataclasses.replace(config, model=model, loss=LossConfig(pixel_weight=1.0, dice_weight=1.0))


def test_the_training_step_of_both_tasks_and_styles_takes_the_light_head(tiny_config):
    config = with_light_head(tiny_config)
    program = build_program(config, parallel.make_mesh(config.mesh))
    assert not [name for name in program.trainable if "mask_decoder" in name or name.startswith("reins/transform")]
    batch = {"image": jax.ShapeDtypeStruct((16, 64, 64, 3), jnp.uint8)}
    batch["label"] = jax.ShapeDtypeStruct((16, 64, 64), jnp.uint8)
    _, metrics = jax.eval_shape(program.step, program.state, program.frozen, batch)
    assert {"loss/pixel", "loss/dice"} <= set(metrics)


def test_a_file_with_the_light_head_predicts(tiny_config, tmp_path):
    model = SegmentationModel(dataclasses.replace(with_light_head(tiny_config).model, mim=None))
    save_native(tmp_path / "model.safetensors", model.init(jax.random.key(0)), Description(model=model.config))
    loaded = load(tmp_path / "model.safetensors")
    scores = loaded.scores(np.random.default_rng(0).normal(size=(1, 16, 16, 3)).astype(np.float32))
    np.testing.assert_allclose(scores.sum(-1), 1, rtol=1e-5)
    image = np.random.default_rng(0).integers(0, 256, (1, 40, 33, 3), np.uint8)
    assert loaded.predict(image).shape == (1, 40, 33) and loaded.predict(image).max() < 5


def test_a_linear_head_is_one_matrix_on_the_concatenated_levels(tiny_config):
    head = HeadConfig(kind="linear")
    model = SegmentationModel(dataclasses.replace(tiny_config.model, head=head, reins=None, mim=None))
    params = model.init(jax.random.key(0))
    assert [name for name in params if name.startswith("head/")] == ["head/classifier/bias", "head/classifier/kernel"]
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 32, 32, 3)), jnp.float32)
    features = model.features(params, images)
    stacked = np.concatenate([np.asarray(level) for level in features.levels], axis=-1)
    wanted = stacked @ np.asarray(params["head/classifier/kernel"])[0, 0] + np.asarray(params["head/classifier/bias"])
    np.testing.assert_allclose(model.decode(params, features), wanted, rtol=1e-4, atol=1e-4)
    assert model.scores(params, images).shape == (1, 32, 32, tiny_config.model.classes)
