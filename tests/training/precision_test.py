"""Which operations of a training step use bfloat16, which must not, and the difference to float32 results."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossearth_jax.aot.origins import inner_programs
from crossearth_jax.config import (
    AugmentConfig,
    Config,
    HeadConfig,
    LossConfig,
    MimConfig,
    MimTaskConfig,
    ModelConfig,
    ReinsConfig,
    ViTConfig,
)
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.ops import attention, deformable_attention, sampling
from crossearth_jax.runtime import parallel
from crossearth_jax.training.program import build_program


def equations(program: Any) -> Iterator[Any]:
    """Yield all equations of a program, including those in loops and branches."""
    for equation in program.eqns:
        yield equation
        for inner in inner_programs(equation.params):
            yield from equations(inner)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_bfloat16_is_kept_away_from_softmax_norms_losses_and_state(tiny_config, monkeypatch, platform):
    for module in (attention, deformable_attention, sampling):
        monkeypatch.setattr(module, "platform", lambda: platform)
    model = dataclasses.replace(tiny_config.model, dtype="bfloat16")
    config = dataclasses.replace(tiny_config, model=model, style=None)
    batch = {"image": jax.ShapeDtypeStruct((16, 64, 64, 3), jnp.uint8)}
    batch["label"] = jax.ShapeDtypeStruct((16, 64, 64), jnp.uint8)
    program = build_program(config, parallel.make_mesh(config.mesh))
    traced = program.step.trace(program.state, program.frozen, batch)
    floating = [
        leaf.dtype.name for leaf in jax.tree.leaves(traced.out_info) if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    assert set(floating) == {"float32"}
    work: Counter[str] = Counter()
    for equation in equations(traced.jaxpr):
        types = {value.aval.dtype.name for value in equation.invars if jnp.issubdtype(value.aval.dtype, jnp.floating)}
        # Softmax, normalisation, losses and matching costs consist of these. GELU may have the precision of what it is
        # applied to; its derivative has an exponential.
        if equation.primitive.name in ("exp", "exp2", "log", "log1p", "rsqrt", "sqrt", "logistic"):
            gelu = equation.outvars[0].aval.shape[-1:] == (config.model.vit.mlp_width,)
            assert types == {"float32"} or gelu, str(equation)[:300]
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            work[min(types)] += 1
    # The products of backbone and heads, forwards and backwards.
    assert work["bfloat16"] > 100


def small_model(**vit):
    """Return a network with residual branches as large as the stream and Rein changes of a thousandth of it."""
    backbone = ViTConfig(image_size=16, patch_size=4, width=32, heads=2, mlp_width=64, layer_scale=1.0, **vit)
    head = HeadConfig(
        width=16, heads=2, groups=4, encoder_layers=1, encoder_mlp_width=16, points=2, decoder_layers=1,
        decoder_mlp_width=16,
    )  # fmt: skip
    mim = MimConfig(width=8, dilations=(1, 2), image_size=16, token_size=16)
    return ModelConfig(classes=5, vit=backbone, reins=ReinsConfig(tokens=8, rank=4, scale=1e-3), head=head, mim=mim)


def in_both_precisions(config, compute):
    """Return `compute(model)` in float32 and in bfloat16."""
    types = ("float32", "bfloat16")
    return [compute(SegmentationModel(dataclasses.replace(config, dtype=dtype))) for dtype in types]


def test_what_rein_adds_comes_through_twelve_blocks():
    config = small_model(depth=12, feature_blocks=(2, 5, 8, 11))
    params = jax.jit(SegmentationModel(config).init)(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))

    def effect(model):
        levels = jax.jit(lambda params: model.features(params, images).levels)
        pairs = zip(levels(params), levels(params | {"reins/scale": jnp.zeros(())}), strict=True)
        return [np.asarray(a, np.float32) - np.asarray(b, np.float32) for a, b in pairs]

    for wanted, found in zip(*in_both_precisions(config, effect), strict=True):
        assert (found == 0).mean() < 0.01
        assert np.corrcoef(wanted.ravel(), found.ravel())[0, 1] > 0.98


PARTS = ("reins/tokens_a", "reins/tokens_b", "reins/token_to_feature", "reins/delta", "reins/scale", "reins/transform",
         "reins/merge", "head/pixel_decoder", "head/mask_decoder", "mim")  # fmt: skip


def test_loss_and_direction_of_a_bfloat16_step_are_those_of_float32():
    model = small_model(depth=6, feature_blocks=(0, 1, 3, 5))
    # With all candidates chosen, floating-point rounding does not change the points.
    loss_config = LossConfig(points=64, oversample=1.0, importance=1.0)
    augment = AugmentConfig(crop_size=16, scales=(1.0,), max_class_share=1.0, flip=False, photometric=False)
    config = Config(name="small", model=model, mim=MimTaskConfig(), loss=loss_config, augment=augment)
    params = jax.jit(SegmentationModel(model).init)(jax.random.key(0))
    # The initial queries are nearly equal, so that rounding would decide which of them is matched to a class.
    params = {name: 10 * value if name.startswith("reins/tokens") else value for name, value in params.items()}
    frozen = {name: value for name, value in params.items() if name.startswith("backbone/")}
    trainable = {name: value for name, value in params.items() if name not in frozen}
    # The gradient of Rein's scale is a sum of terms of both signs. On this batch the terms do not cancel.
    rng = np.random.default_rng(6)
    images = rng.integers(0, 256, (8, 4, 4, 3), np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    labels = rng.integers(0, 5, (8, 4, 4), np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    batch = {"image": jnp.asarray(images), "label": jnp.asarray(labels)}
    mesh = parallel.make_mesh(config.mesh, jax.devices()[:1])

    def step(model):
        with jax.set_mesh(mesh):
            program = build_program(dataclasses.replace(config, model=model.config), mesh)
            return program.gradients(program.create_state(trainable), frozen, batch)

    (wanted, wanted_metrics), (found, found_metrics) = in_both_precisions(model, step)
    np.testing.assert_allclose(found_metrics["loss"], wanted_metrics["loss"], rtol=2e-3)
    for part in PARTS:
        names = [name for name in wanted if name.startswith(part)]
        a, b = (np.concatenate([np.ravel(gradient[name]) for name in names]) for gradient in (wanted, found))
        assert a @ b > 0.98 * np.linalg.norm(a) * np.linalg.norm(b), part
        np.testing.assert_allclose(np.linalg.norm(b), np.linalg.norm(a), rtol=0.05, err_msg=part)
