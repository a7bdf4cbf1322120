"""Reconstruction head compared with the reference: prediction, pyramid and gradients of its L1 loss."""

import dataclasses
import json
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.ops.resize import resize_bilinear, scale_bilinear
from crossearth_jax.weights.reference_names import from_reference

PYRAMID = (4.0, 2.0, 1.0, 0.5)
NOISE = json.loads((Path(__file__).parent.parent / "golden/train/mim_noise.json").read_text("utf-8"))


def last(x):
    return jnp.asarray(rearrange(x, "b c h w -> b h w c"))


@pytest.fixture(scope="module")
def model(tiny_model, mim_config):
    return SegmentationModel(dataclasses.replace(tiny_model.config, mim=mim_config))


@pytest.fixture(scope="module")
def mim_params(golden):
    params = jax.tree.map(jnp.asarray, from_reference(golden("train/mim_params")))
    return params | {"mim/mask_token": jnp.zeros((64, 64, 3))}


@pytest.fixture(scope="module")
def forward(golden):
    file = golden("tiny/forward")
    return tuple(last(file[f"feat_raw{i}"]) for i in range(4)), last(file["input"])


def check_gradients(case, gradients, expected, golden_name):
    """Compare gradients by norm: the gradient of an L1 loss is a sign, and single signs may flip."""
    for name, reference in from_reference(expected).items():
        error = np.linalg.norm(gradients[name] - reference) / np.linalg.norm(reference)
        noise = max(float(n["rel_norm"]) for key, n in NOISE.items() if key.startswith(f"{case}/grad.task_head"))
        assert error < 5 * noise, f"{golden_name}: {name} is off by {error:.1e}"


def weights_of(file):
    return {name.removeprefix("grad."): x for name, x in file.items() if name.startswith("grad.task_head")}


def test_masked_only_equals_the_reference(golden, model, tiny_params, mim_params, forward):
    expected = golden("train/mim_masked_only")
    levels, images = forward

    @jax.jit
    def run(mim_params, levels):
        def loss(mim_params, levels):
            prediction = model.reconstruct(tiny_params | mim_params, levels)
            return jnp.abs(prediction - images).mean(), prediction

        gradients, prediction = jax.grad(loss, argnums=(0, 1), has_aux=True)(mim_params, levels)
        mim = model.network(tiny_params | mim_params).mim
        projected = [scale_bilinear(mim.input_conv(x), f) for x, f in zip(levels, PYRAMID, strict=True)]
        return prediction, [mim.pyramid(x) for x in projected], gradients

    prediction, pyramid, (gradients, level_gradients) = run(mim_params, levels)
    tolerance = 5 * float(NOISE["mim_masked_only/prediction"]["max_abs"])
    np.testing.assert_allclose(prediction, last(expected["prediction"]), rtol=0, atol=tolerance)
    for i, x in enumerate(pyramid):
        noise = float(NOISE[f"mim_masked_only/aspp{i}"]["max_abs"])
        np.testing.assert_allclose(x, last(expected[f"aspp{i}"]), rtol=0, atol=5 * noise)
    check_gradients("mim_masked_only", gradients, weights_of(expected), "masked only")
    for i, factor in enumerate(PYRAMID):
        # The reference's gradient is with respect to the resized level, so it is pulled back to the patch grid.
        _, pullback = jax.vjp(lambda x, factor=factor: scale_bilinear(x, factor), levels[i])
        reference = pullback(last(expected[f"grad.feat{i}"]))[0]
        error = np.linalg.norm(level_gradients[i] - reference) / np.linalg.norm(reference)
        assert error < 5 * float(NOISE[f"mim_masked_only/grad.feat{i}"]["rel_norm"])


def test_wide_maps_reach_all_dilations(golden, model, tiny_params, mim_params):
    expected = golden("train/mim_wide")

    def draw(name, shape):
        # Arrays that are not stored follow the rule in the README of the golden numbers.
        generator = np.random.Generator(np.random.PCG64(606 + zlib.crc32(name.encode())))
        return last(generator.standard_normal(shape).astype(np.float32))

    sizes = ((40, 44), (20, 22), (10, 11), (5, 6))
    maps = [draw(f"mim_wide.feat{i}", (1, 64, *size)) for i, size in enumerate(sizes)]
    target = resize_bilinear(draw("mim_wide.image", (1, 3, 80, 96)), (64, 64))

    @jax.jit
    @jax.grad
    def gradient(mim_params):
        mim = model.network(tiny_params | mim_params).mim
        prediction = mim.assemble([mim.pyramid(mim.input_conv(x)) for x in maps])
        return jnp.abs(prediction - target).mean()

    check_gradients("mim_wide", gradient(mim_params), weights_of(expected), "wide")
