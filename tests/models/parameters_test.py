"""Initial values of every parameter compared with the reference's distributions (full table), and logical axes."""

import dataclasses
import math
import re

import jax
import numpy as np
import pytest

from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.runtime import parallel

WIDTH, D, RANK = 64, 32, 4


def fan_in(shape):
    return math.prod(shape[:-1])


def uniform(limit):
    return lambda shape: ("uniform", limit(shape) if callable(limit) else limit)


def normal(std):
    return lambda shape: ("normal", std(shape) if callable(std) else std)


def constant(value):
    return lambda shape: ("constant", value)


def torch_default(inputs):
    return uniform(inputs**-0.5)


XAVIER_NORMAL = normal(lambda shape: math.sqrt(2 / (shape[-2] + shape[-1])))
CAFFE_UNIFORM = uniform(lambda shape: math.sqrt(3 / fan_in(shape)))
XAVIER_UNIFORM = uniform(lambda shape: math.sqrt(6 / (shape[-2] + shape[-1])))

# The first match counts.
TABLE = (
    (r".*norm\d?/scale", constant(1.0)),
    (r".*norm\d?/bias", constant(0.0)),
    (r"backbone/patch_embed/(kernel|bias)", torch_default(3 * 16 * 16)),
    (r"backbone/class_token", normal(1e-6)),
    (r"backbone/position", normal(0.02)),
    (r"backbone/blocks/gain\d", constant(1e-5)),
    (r"backbone/blocks/.*kernel", normal(0.02)),
    (r"backbone/blocks/.*bias", constant(0.0)),
    (r"reins/tokens_[ab]", uniform(math.sqrt(6 / (3 * 256 + math.sqrt(WIDTH * RANK))))),
    (r"reins/scale", constant(1e-3)),
    (r"reins/merge/(kernel|bias)", torch_default(3 * D)),
    (r"reins/.*", torch_default(WIDTH)),
    (r"head/pixel_decoder/input_convs/\d/conv/kernel", XAVIER_UNIFORM),
    (r"head/pixel_decoder/(input_convs/\d/conv|mask_feature)/bias", constant(0.0)),
    (
        r"head/pixel_decoder/(lateral_conv|output_conv|mask_feature).*kernel",
        uniform(lambda s: math.sqrt(3 / fan_in(s))),
    ),
    (r"head/pixel_decoder/level_encoding|head/mask_decoder/level_embed", normal(1.0)),
    (r"head/pixel_decoder/encoder/attention/(sampling_offsets|attention_weights)/kernel", constant(0.0)),
    (r"head/pixel_decoder/encoder/attention/sampling_offsets/bias", lambda shape: ("skip", None)),
    (r"head/pixel_decoder/encoder/attention/.*kernel", XAVIER_UNIFORM),
    (r"head/pixel_decoder/encoder/attention/.*bias", constant(0.0)),
    (r"head/.*attention/(query|key|value)/kernel", normal(math.sqrt(2 / (D + 3 * D)))),
    (r"head/.*attention/out/kernel", XAVIER_NORMAL),
    (r"head/.*attention/.*bias", constant(0.0)),
    (r"head/.*mlp/fc\d/kernel", XAVIER_NORMAL),
    (r"head/.*mlp/fc1/bias", torch_default(D)),
    (r"head/.*mlp/fc2/bias", torch_default(64)),
    (r"head/mask_decoder/(query_projection|class_head|mask_head/\d)/.*", torch_default(D)),
    (r"mim/mask_token", constant(0.0)),
    (r"mim/input_conv/.*", torch_default(WIDTH)),
    (r"mim/dilated/\d/.*", torch_default(9 * D)),
    (r"mim/(merge_conv|refine)/.*", torch_default(4 * D)),
    (r"mim/output_conv/.*", torch_default(D)),
)


@pytest.fixture(scope="module")
def params(tiny_model, mim_config):
    model = SegmentationModel(dataclasses.replace(tiny_model.config, mim=mim_config))
    return jax.device_get(jax.jit(model.init)(jax.random.key(0)))


def check(name, kind, size, values):
    if kind == "constant":
        np.testing.assert_array_equal(values, np.full(values.shape, size, np.float32), err_msg=name)
    elif kind == "uniform":
        assert np.abs(values).max() <= size, name
    # Some tensors are small, so the tolerance is 5 standard errors of the estimated deviation.
    if kind in ("uniform", "normal"):
        std = size / math.sqrt(3) if kind == "uniform" else size
        assert abs(values.std() / std - 1) < 5 / math.sqrt(2 * values.size), f"{name}: {values.std()} for {std}"


def test_every_parameter_has_its_distribution(params):
    for name, values in params.items():
        rule = next((rule for pattern, rule in TABLE if re.fullmatch(pattern, name)), None)
        assert rule is not None, f"{name} is in no row of the table"
        check(name, *rule(values.shape), values)


def test_logical_axes_say_how_large_parameters_are_split(tiny_model, mim_config):
    model = SegmentationModel(dataclasses.replace(tiny_model.config, mim=mim_config))
    axes, shapes = model.axes(), model.shapes()
    for name, logical in axes.items():
        assert len(logical) in (0, len(shapes[name].shape)), name
        placed = [parallel.MESH_AXES[axis] for axis in logical if axis and parallel.MESH_AXES[axis]]
        assert len(placed) == len(set(placed)), name  # no mesh axis twice
        # Only stacks of layers, over which a scan runs, are gathered one layer at a time.
        assert ("layers" in logical) == name.startswith(("backbone/blocks/", "head/pixel_decoder/encoder/")), name
    assert axes["backbone/blocks/attention/qkv/kernel"] == ("layers", "embed", "heads")
    assert axes["backbone/blocks/norm1/scale"] == ("layers", None)
    assert axes["head/mask_decoder/layers/0/cross_attention/out/kernel"] == ("heads", "embed")
    assert axes["head/mask_decoder/class_head/kernel"] == ()
    assert axes["mim/dilated/0/kernel"] == ("window", "window", "embed", None)


def test_layers_of_a_stack_differ(params):
    kernels = params["backbone/blocks/mlp/fc1/kernel"]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01


def test_offsets_are_rays_by_hand(params):
    bias = params["head/pixel_decoder/encoder/attention/sampling_offsets/bias"][1].reshape(4, 3, 4, 2)
    rays = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
    for level in range(3):
        np.testing.assert_allclose(bias[:, level], rays[:, None] * np.arange(1, 5)[:, None], atol=1e-6)
