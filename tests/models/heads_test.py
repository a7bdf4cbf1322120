"""What all heads have in common: their registry, their loss, and how a new head is added."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossearth_jax.config import LossConfig, UserError
from crossearth_jax.models.heads import HEADS
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.models.segmentation_head import CLASS_LAYER
from crossearth_jax.runtime import parallel
from crossearth_jax.training.program import build_program

PAGE = (Path(__file__).parents[2] / "docs/howto/heads.md").read_text("utf-8")


def with_head(config, kind, **loss):
    head = dataclasses.replace(config.model.head, kind=kind, last_blocks=1)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, head=head), loss=LossConfig(**loss))


def metrics_of(config):
    program = build_program(config, parallel.make_mesh(config.mesh))
    batch = {"image": jax.ShapeDtypeStruct((16, 16, 16, 3), jnp.uint8)}
    batch["label"] = jax.ShapeDtypeStruct((16, 16, 16), jnp.uint8)
    return jax.eval_shape(program.step, program.state, program.frozen, batch)[1]


@pytest.mark.parametrize("kind", HEADS)
def test_every_head_is_documented_and_has_one_class_layer_and_divisible_axes(tiny_config, kind):
    assert re.search(rf"^\| `{kind}`", PAGE, re.MULTILINE)
    model = SegmentationModel(with_head(tiny_config, kind).model)
    axes, shapes = model.axes(), model.shapes()
    layers = {name.rpartition("/")[0] for name in shapes if CLASS_LAYER.fullmatch(name)}
    (layer,) = layers
    assert layer.endswith("classifier" if model.queries is None else "class_head")
    assert shapes[f"{layer}/bias"].shape == (5 if model.queries is None else 6,)
    for name in (name for name in shapes if name.startswith("head/")):
        assert len(axes[name]) in (0, len(shapes[name].shape)), name
        placed = [parallel.MESH_AXES[axis] for axis in axes[name] if axis and parallel.MESH_AXES[axis]]
        assert len(placed) == len(set(placed)), name  # no mesh axis twice


def test_a_head_that_classifies_pixels_needs_the_pixel_wise_loss(tiny_config):
    with pytest.raises(UserError, match=r"loss\.pixel_weight is 0, but the head 'linear' is trained with this loss"):
        metrics_of(with_head(tiny_config, "linear"))


def test_an_unknown_head_is_named(tiny_config):
    with pytest.raises(UserError, match=r"model\.head\.kind is 'maskformer', expected one of mask2former, eomt, fcn"):
        SegmentationModel(with_head(tiny_config, "maskformer").model).shapes()


def test_the_example_of_a_new_head_works(tiny_config, monkeypatch):
    monkeypatch.setattr("crossearth_jax.models.heads.HEADS", dict(HEADS))  # the example adds a line
    (example,) = (code for code in re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
    exec(example, {})
    config = with_head(tiny_config, "last_level", pixel_weight=1.0)
    assert {"loss/pixel", "loss/dice", "loss/mim/masked"} <= metrics_of(config).keys()
    model = SegmentationModel(config.model)
    params = {name: np.zeros(shape.shape, np.float32) for name, shape in model.shapes().items()}
    params["head/classifier/bias"] = np.log(np.arange(1, 6, dtype=np.float32))
    scores = jax.jit(model.scores)(params, np.zeros((1, 16, 16, 3), np.float32))
    np.testing.assert_allclose(scores[0, 7, 7], np.arange(1, 6) / 15, rtol=1e-5)  # softmax of the logarithms
