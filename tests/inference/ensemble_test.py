"""The scores of several models are averaged, and models that do not fit together are refused."""

import dataclasses

import jax
import numpy as np
import pytest

from crossearth_jax.config import UserError
from crossearth_jax.inference.ensemble import averaged_windows, check_alike
from crossearth_jax.inference.segmentor import Segmentor
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.weights.native import Description

NAMES = ("water", "forest", "shrub", "crop", "bare")


@pytest.fixture(scope="module")
def pair(tiny_config):
    """Two models with different parameters."""
    model = SegmentationModel(dataclasses.replace(tiny_config.model, mim=None))
    described = Description(model=model.config, class_names=NAMES, window=16, stride=11)
    init = jax.jit(model.init)
    return [Segmentor(model, init(jax.random.key(seed)), described) for seed in (0, 1)]


def test_scores_are_the_mean_of_those_of_each_model(pair):
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    alone = [dict(model.sliding_windows(batch_size=8).scores([image]))[0] for model in pair]
    assert not np.allclose(*alone)
    ((_, found),) = averaged_windows(pair, batch_size=8).scores([image])
    np.testing.assert_allclose(found, (alone[0] + alone[1]) / 2, rtol=1e-5)


def test_descriptors_are_those_of_the_first(pair):
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    first, both = [], []
    for models, found in ((pair[:1], first), (pair, both)):
        averaged_windows(models, batch_size=8, observe=found.append).score(
            np.repeat(image, 8, 0), np.ones((8, 16, 16), bool)
        )
    np.testing.assert_array_equal(first, both)


def test_window_and_stride(pair):
    windows = averaged_windows([pair[0], changed(pair[1], stride=7)])
    assert (windows.window, windows.stride) == (16, 11)  # the stride of the first
    assert averaged_windows(pair, stride=5).stride == 5


def changed(segmentor, **description):
    return dataclasses.replace(segmentor, description=dataclasses.replace(segmentor.description, **description))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": (*NAMES[:4], "snow")}, "b has the classes water, forest, shrub, crop, snow, but a has water, "
         "forest, shrub, crop, bare; average checkpoints of the same classes"),
        ({"class_names": ()}, "b has the classes 5 without names, but a has water"),
        ({"bands": ("nir", "red", "green")}, "b has the bands nir, red, green, but a has unknown; average"),
        ({"window": 32}, "b has the window 32, but a has 16; give the window of all with --window"),
    ],
)  # fmt: skip
def test_models_that_differ_are_refused(pair, change, message):
    check_alike(pair, ["a", "b"])
    with pytest.raises(UserError, match=message):
        check_alike([pair[0], changed(pair[1], **change)], ["a", "b"])
