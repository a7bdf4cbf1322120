"""Eight virtual devices for every test, and weights that several folders test with."""

import json
import pathlib
import zlib

import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 8)

GOLDEN = pathlib.Path(__file__).parent / "golden" / "train"


@pytest.fixture(scope="session")
def published_style():
    """The paper's style network under its published names, filled by the rule in golden/train/README.md."""
    shapes = json.loads((GOLDEN / "style_shapes.json").read_text())
    return {name: _style_tensor(name, tuple(shape)) for name, shape in shapes.items()}


def _style_tensor(name, shape):
    mean, std = _mean_and_std(name, shape)
    seed = 606 + zlib.crc32(name.encode())
    return np.float32(mean + std * np.random.Generator(np.random.PCG64(seed)).standard_normal(shape))


def _mean_and_std(name, shape):
    module, leaf = name.split(".")[-2:]
    rules = (
        (leaf == "num_batches_tracked", (0, 0)),
        (leaf == "running_var", (1, 0.1)),
        (leaf == "running_mean", (0, 0.1)),
        (name.endswith("bn.weight"), (1, 0.1)),
        (name.endswith("bn.bias"), (0, 0.1)),
        (name == "stylePredictor.fc.weight", (0, 0.15 / np.sqrt(768))),
        (module.startswith(("fc_gamma", "fc_beta")) and leaf == "weight", (0, 0.25)),
        (module.startswith("fc_gamma"), (1, 0.2)),
        (module.startswith("fc_beta"), (0, 0.2)),
        (leaf == "weight", (0, np.sqrt(2 / np.prod(shape[1:])))),
        (leaf == "bias", (0, 0.1)),
    )
    return next(value for fits, value in rules if fits)
