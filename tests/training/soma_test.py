"""Start of a run with the adapter "soma": the split of the frozen weights, also from weights files."""

import dataclasses

import jax
import numpy as np
import pytest

from crossearth_jax.config import HeadConfig, LossConfig, UserError
from crossearth_jax.runtime import parallel
from crossearth_jax.training.start import start
from crossearth_jax.weights.native import Description, save_native
from crossearth_jax.weights.starting import starting_weights

KERNEL, FACTORS = "backbone/blocks/mlp/fc1/kernel", "adapter/layers/fc1"


def began(config, folder):
    mesh = parallel.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        run, checkpoints = start(config, folder, mesh)
    return {name: np.asarray(x) for name, x in run.params.items()}, checkpoints.identity


def test_a_run_splits_the_weights_that_it_loads_once(tiny_config, tmp_path):
    model = dataclasses.replace(tiny_config.model, head=HeadConfig(kind="linear"), mim=None, adapter="none")
    plain = dataclasses.replace(
        tiny_config, model=model, style=None, mim=None, loss=LossConfig(pixel_weight=1.0, dice_weight=1.0)
    )
    original, identity = began(plain, tmp_path / "plain")
    save_native(tmp_path / "backbone.safetensors", original, Description(model=model))
    config = dataclasses.replace(
        plain,
        model=dataclasses.replace(model, adapter="soma"),
        train=dataclasses.replace(plain.train, init_from=str(tmp_path / "backbone.safetensors")),
    )
    split, split_identity = began(config, tmp_path / "soma")
    update = split[f"{FACTORS}/down"][:, 0] @ split[f"{FACTORS}/up"][:, 0]
    assert np.linalg.norm(update) > 0.01 * np.linalg.norm(original[KERNEL])
    np.testing.assert_allclose(split[KERNEL] + update, original[KERNEL], atol=1e-7)
    assert split_identity["frozen_digest"] == identity["frozen_digest"]

    # A run that starts from the file of such a run continues with its factors.
    file = tmp_path / "trained.safetensors"
    save_native(file, split | {f"{FACTORS}/up": 2 * split[f"{FACTORS}/up"]}, Description(model=config.model))
    again, _ = began(
        dataclasses.replace(config, train=dataclasses.replace(config.train, init_from=str(file))), tmp_path / "again"
    )
    np.testing.assert_array_equal(again[KERNEL], split[KERNEL])
    np.testing.assert_array_equal(again[f"{FACTORS}/up"], 2 * split[f"{FACTORS}/up"])
    with pytest.raises(UserError, match=r"incomplete without the adapter; set model\.adapter=soma, not none"):
        starting_weights(file, model)
