"""The gradient of a training step depends neither on the number of micro-batches nor on padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossearth_jax.benchmark import IGNORE
from crossearth_jax.config import AugmentConfig, LossConfig, MeshConfig, MimTaskConfig
from crossearth_jax.losses import mask_set
from crossearth_jax.runtime import parallel
from crossearth_jax.training.initialise import initial_params
from crossearth_jax.training.program import build_program

PLAIN = AugmentConfig(crop_size=16, scales=(1.0,), max_class_share=1.0, flip=False, photometric=False)


@pytest.fixture(scope="module")
def batch():
    """Return four images with 256, 128, 20 and 0 labelled pixels and one to four classes; one image is half padding."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 16, 16, 3), np.uint8)
    labels = rng.integers(0, 4, (4, 16, 16), np.uint8)
    labels[1, :, 8:] = IGNORE
    labels[2] = IGNORE
    labels[2, 0], labels[2, 1, :4] = 0, 1
    labels[3] = IGNORE
    sizes = np.int32([[16, 16], [16, 8], [16, 16], [16, 16]])
    return {"image": jnp.asarray(images), "label": jnp.asarray(labels), "size": jnp.asarray(sizes)}


def fixed_points(config, key, classes):
    """Use the same points for every image, so that the division into micro-batches does not change them."""
    del key
    return mask_set.Points(*(jax.random.uniform(jax.random.key(n), s) for n, s in enumerate(_shapes(config, classes))))


def _shapes(config, classes):
    return (config.points, 2), (classes, config.points, 2)


def test_micro_batches_together_are_one_batch(tiny_config, batch, monkeypatch):
    monkeypatch.setattr(mask_set, "draw_points", fixed_points)
    config = dataclasses.replace(
        tiny_config,
        augment=PLAIN,
        style=None,
        mim=MimTaskConfig(mask_ratio=0.0),
        loss=LossConfig(
            points=64, oversample=1.0, importance=1.0, pixel_weight=1.0, class_weights=(1.0, 0.5, 2.0, 4.0, 1.0)
        ),
    )
    mesh = parallel.make_mesh(MeshConfig(), jax.devices()[:1])

    def gradients(accumulate):
        optimizer = dataclasses.replace(config.optimizer, accumulate=accumulate)
        with jax.set_mesh(mesh):
            program = build_program(dataclasses.replace(config, optimizer=optimizer), mesh)
            trainable, frozen = initial_params(program)
            return program.gradients(program.create_state(trainable), frozen, batch)

    (wanted, wanted_metrics), (found, found_metrics) = gradients(1), gradients(2)
    terms = {name: value for name, value in wanted_metrics.items() if name.startswith("loss")}
    assert {name.split("/")[1] for name in terms if "/" in name} == {"class", "mask", "dice", "pixel", "mim"}
    for name, term in terms.items():
        np.testing.assert_allclose(found_metrics[name], term, rtol=1e-5, atol=1e-6, err_msg=name)
    scale = max(float(jnp.abs(value).max()) for value in wanted.values())
    for name, gradient in wanted.items():
        np.testing.assert_allclose(found[name], gradient, rtol=1e-4, atol=1e-6 * scale, err_msg=name)
