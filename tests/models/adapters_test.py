"""What all adapters have in common: what is trained, how it is split, and how a model with one is stored."""

import contextlib
import dataclasses
import io
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.conftest import example

from crossearth_jax.config import LossConfig, UserError
from crossearth_jax.models.adapters import ADAPTERS
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.runtime import parallel
from crossearth_jax.training.program import build_program
from crossearth_jax.weights.load import load_weights
from crossearth_jax.weights.native import Description, save_native

KINDS = sorted(ADAPTERS)
PAGE = (Path(__file__).parents[2] / "docs/howto/adapters.md").read_text("utf-8")


@pytest.fixture(scope="module", params=KINDS)
def config(request, tiny_config):
    """The small configuration with a light head and an adapter."""
    head = dataclasses.replace(tiny_config.model.head, kind="linear")
    model = dataclasses.replace(tiny_config.model, adapter=request.param, head=head)
    return dataclasses.replace(tiny_config, model=model, loss=LossConfig(pixel_weight=1.0, dice_weight=1.0))


def test_the_default_tables_train_the_adapter_and_freeze_the_backbone(config):
    program = build_program(config, parallel.make_mesh(config.mesh))
    assert {name.split("/")[0] for name in program.trainable} == {"adapter", "head", "mim"}
    assert {name.split("/")[0] for name in program.frozen} == {"backbone", "style"}


def test_every_parameter_of_the_adapter_has_a_gradient(config):
    model = SegmentationModel(config.model)
    rng = np.random.default_rng(0)
    shapes = model.shapes().items()
    params = {name: jnp.asarray(rng.normal(scale=0.2, size=s.shape), jnp.float32) for name, s in shapes}
    images = jnp.asarray(rng.normal(size=(1, 32, 32, 3)), jnp.float32)

    def loss(adapter):
        return sum(jnp.sum(level**2) for level in model.features(params | adapter, images).levels)

    gradients = jax.jit(jax.grad(loss))({name: x for name, x in params.items() if name.startswith("adapter/")})
    assert gradients and all(np.abs(gradient).max() > 0 for gradient in gradients.values())


def test_logical_axes(config):
    model = SegmentationModel(config.model)
    axes, shapes = model.axes(), model.shapes()
    for name in (name for name in shapes if name.startswith("adapter/")):
        assert len(axes[name]) in (0, len(shapes[name].shape)), name
        placed = [parallel.MESH_AXES[axis] for axis in axes[name] if axis and parallel.MESH_AXES[axis]]
        assert len(placed) == len(set(placed)), name  # no mesh axis twice


def test_a_file_keeps_the_adapter(config, tmp_path):
    model = SegmentationModel(dataclasses.replace(config.model, mim=None))
    params = {name: np.zeros(shape.shape, np.float32) for name, shape in model.shapes().items()}
    save_native(tmp_path / "model.safetensors", params, Description(model=model.config))
    loaded = load_weights(tmp_path / "model.safetensors")
    assert loaded.description.model == model.config and loaded.params.keys() == params.keys()


def test_an_unknown_adapter_is_named(tiny_config):
    with pytest.raises(UserError, match=r"model\.adapter is 'lorra', expected one of rein, none, lora"):
        SegmentationModel(dataclasses.replace(tiny_config.model, adapter="lorra")).shapes()


def test_the_page_gives_the_numbers_of_parameters_that_its_command_prints():
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(example(PAGE, "print("), {})
    numbers = dict(line.split() for line in printed.getvalue().splitlines())
    assert numbers.keys() == {"rein", "none", *KINDS}
    for kind, number in numbers.items():
        assert re.search(rf"^\| `{kind}`.*\| {int(number):,} \|", PAGE, re.MULTILINE), f"{kind}: {int(number):,}"


def test_the_example_of_a_new_adapter_works(tiny_config, monkeypatch):
    monkeypatch.setattr("crossearth_jax.models.adapters.ADAPTERS", dict(ADAPTERS))  # the example adds a line
    exec(example(PAGE, "class Shift"), {})
    config = dataclasses.replace(tiny_config.model, adapter="shift", head=None, mim=None)
    model = SegmentationModel(config)
    params = {name: np.zeros(shape.shape, np.float32) for name, shape in model.shapes().items()}
    params["adapter/vectors"] += np.arange(1, 5, dtype=np.float32)[:, None]
    levels = jax.jit(model.features)(params, np.zeros((1, 16, 16, 3), np.float32)).levels
    # All blocks compute zero, so the features are the sums of the vectors 1, 2, 3 and 4.
    assert [float(level.min()) for level in levels] == [float(level.max()) for level in levels] == [1, 3, 6, 10]
