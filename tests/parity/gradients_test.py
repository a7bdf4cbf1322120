"""Loss terms and gradients of whole training steps compared with the reference, for every trained tensor.

The random choices of a step (points, hidden blocks, restyled images) are given. Everything else is computed by the
training code: backbone and heads, stacking of the two tasks, matching, losses.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from einops import rearrange, repeat

from crossearth_jax.config import (
    Config,
    LossConfig,
    MimConfig,
    MimTaskConfig,
    ModelConfig,
    StyleConfig,
    from_config_dict,
)
from crossearth_jax.losses import mask_set, segmentation
from crossearth_jax.losses.mim import reconstruction_loss
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.training import step
from crossearth_jax.training.state import TrainState
from crossearth_jax.weights import reference_names

GOLDEN = Path(__file__).parents[1] / "golden"
PREDICTIONS = ("d0", "d1", "d2", "last")
CLASSES = 6
# Five times the float32 noise of the reference; gradients relative to the norm of each tensor (golden/tiny/README.md).
GRADIENT_TOLERANCE = 5 * 2e-5
TERM_TOLERANCE = 5 * 4e-6


def tiny_config():
    model = from_config_dict(json.loads((GOLDEN / "tiny" / "model.json").read_text()), ModelConfig)
    return Config(
        name="tiny",
        model=dataclasses.replace(model, mim=MimConfig(width=32, image_size=64, token_size=64)),
        loss=LossConfig(points=196),
        mim=MimTaskConfig(),
        # `literal` accepts a batch that is restyled as a whole.
        style=StyleConfig(literal=True),
    )


@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def terms_and_gradients(trainable, frozen, example, points, kept, mim):
    """Return the loss terms of a training step and the gradient of their sum, for given random choices.

    `mim` is the weight of the reconstruction terms. The function is compiled once for all tests. Compilation takes
    longer than everything else, so the compiler optimises little.
    """
    config = tiny_config()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            step, "augment", lambda config, key, image, label, size: (image, label, jnp.ones(label.shape, bool))
        )
        patch.setattr(step, "normalize", lambda images: images)
        patch.setattr(
            segmentation, "mask_set_loss", lambda config, key, *rest: mask_set.loss_from_points(config, points, *rest)
        )
        patch.setattr(
            step,
            "reconstruction_loss",
            lambda *args: {name: mim * term for name, term in reconstruction_loss(*args).items()},
        )
        patch.setattr(step, "content_mask", lambda config, key, images, token, inside: jnp.where(kept, images, token))
        state = TrainState(jnp.int32(0), trainable, optax.EmptyState(), None)
        _, metrics, gradients = step.train_step(
            config, SegmentationModel(config.model), optax.identity(), lambda *_: (example.shown, example.styled), 1,
            state, frozen, {"image": example.clean, "label": example.labels},
        )  # fmt: skip
    terms = {name.removeprefix("loss/"): value for name, value in metrics.items() if name.startswith("loss/")}
    return terms, gradients


@pytest.fixture(scope="module")
def params():
    """Return (trainable, frozen), with the reconstruction head and the mask token of `golden/train`."""
    tensors = dict(np.load(GOLDEN / "tiny" / "params.npz")) | dict(np.load(GOLDEN / "train" / "mim_params.npz"))
    tensors["mask_token"] = np.load(GOLDEN / "train" / "train_step_inputs.npz")["mask_token"]
    ours = reference_names.from_reference(tensors)
    names = SegmentationModel(tiny_config().model).shapes()
    trainable = {name: ours[name] for name in names if not name.startswith("backbone/")}
    return trainable, {name: ours[name] for name in names if name.startswith("backbone/")}


class Example(NamedTuple):
    """Normalised images of a step, the same with some restyled, which those are, and labels."""

    clean: jax.Array
    shown: jax.Array
    styled: jax.Array
    labels: jax.Array


def channels_last(array):
    return jnp.asarray(rearrange(array, "b c h w -> b h w c"))


def given_points(draws, targets):
    """Return the stored points by class; the reference stores them by (image, matched query).

    `targets` holds the class of each query per prediction and image. Classes without a query get a filler.
    """
    images = len(targets["last"])
    loss = np.full((images, len(PREDICTIONS), CLASSES, 588 + 49, 2), 0.5, np.float32)
    for p, name in enumerate(PREDICTIONS):
        rows = [(i, label) for i, labels in enumerate(targets[name]) for label in labels[labels < CLASSES]]
        for row, (image, label) in enumerate(rows):
            own = draws[f"{name}.oversample_points"][row], draws[f"{name}.random_points"][row]
            loss[image, p, label] = np.concatenate(own)
    return mask_set.Points(np.stack([draws[f"{name}.match_points"] for name in PREDICTIONS], axis=1), loss)


def twice(tree):
    """Repeat a batch of one image, so that all steps have the shape of a batch of two and compile once.

    Every loss is a mean over the batch, so terms and gradients are those of the single image.
    """
    return jax.tree.map(lambda x: repeat(jnp.asarray(x), "1 ... -> 2 ..."), tree)


def assert_terms(terms, golden, prefix):
    names = {"class": "cls", "mask": "mask", "dice": "dice"}
    for name in PREDICTIONS:
        stem = f"{prefix}decode.loss" if name == "last" else f"{prefix}decode.{name}.loss"
        for ours, theirs in names.items():
            value, expected = terms[f"{ours}/{name.removeprefix('d')}"], golden[f"{stem}_{theirs}"]
            np.testing.assert_allclose(value, expected, rtol=0, atol=TERM_TOLERANCE, err_msg=f"{ours}/{name}")


def assert_gradient(found, expected, name, tolerance=GRADIENT_TOLERANCE):
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error <= tolerance, f"{name}: relative error {error:.1e} of {tolerance:.1e}"


def test_segmentation_alone_on_two_images(params):
    golden = np.load(GOLDEN / "tiny" / "loss.npz")
    images = channels_last(golden["input"])
    targets = {name: [golden[f"{name}.img{i}.query_targets"] for i in range(2)] for name in PREDICTIONS}
    example = Example(images, images, jnp.zeros(2, bool), jnp.asarray(golden["gt"]))
    kept = jnp.ones((2, 64, 64, 1), bool)
    terms, gradients = terms_and_gradients(*params, example, given_points(golden, targets), kept, 0.0)
    assert_terms(terms, golden, "")
    assert "pixel" not in terms  # the reference has no such term, and its weight in the configuration is 0
    found = reference_names.to_reference(jax.tree.map(np.asarray, gradients))
    expected = np.load(GOLDEN / "tiny" / "grads.npz")
    assert set(expected) == {name for name in found if not name.startswith(("task_head", "mask_token"))}
    for name in expected:
        assert_gradient(found[name], expected[name], name)


@pytest.mark.parametrize("case", ["clean", "styled_literal", "styled_normalised"])
def test_both_tasks(case, params):
    inputs = np.load(GOLDEN / "train" / "train_step_inputs.npz")
    golden = np.load(GOLDEN / "train" / f"train_step_{case}.npz")
    summary = json.loads((GOLDEN / "train" / "train_step_summary.json").read_text())[case]
    noise = {name: float(value) for name, value in summary["grad_rel_noise"].items()}
    example = Example(
        clean=channels_last(inputs["input"]),
        shown=channels_last(golden["segmentation_input"]),
        styled=jnp.array([case != "clean"]),
        labels=jnp.asarray(inputs["gt"])[None],
    )
    points = given_points(inputs, {name: golden[f"{name}.query_targets"][None] for name in PREDICTIONS})
    kept = channels_last(inputs["content_mask"]).astype(bool)
    terms, gradients = terms_and_gradients(*params, *twice((example, points, kept)), 1.0)

    assert_terms(terms, golden, "term.")
    for ours, theirs in {"masked": "masked", "styled": "styled", "consistency": "between"}.items():
        expected = golden[f"mim.l1_{theirs}"] if f"mim.l1_{theirs}" in golden else 0
        np.testing.assert_allclose(terms[f"mim/{ours}"], expected, rtol=0, atol=TERM_TOLERANCE)
    np.testing.assert_allclose(sum(terms.values()), golden["total"], rtol=0, atol=15 * TERM_TOLERANCE)

    found = reference_names.to_reference(jax.tree.map(np.asarray, gradients))
    assert set(found) == set(summary["grad_norm"])
    for name, norm in summary["grad_norm"].items():
        tolerance = max(GRADIENT_TOLERANCE, 5 * noise[name])
        np.testing.assert_allclose(np.linalg.norm(found[name]), norm, rtol=tolerance, err_msg=name)
        if f"grad.{name}" in golden:
            assert_gradient(found[name], golden[f"grad.{name}"], name, tolerance)
    assert not found["mask_token"][np.broadcast_to(inputs["content_mask"], found["mask_token"].shape) == 1].any()
