"""Fixtures: configuration and parameters of the tiny network of the golden numbers."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossearth_jax.config import HeadConfig, MimConfig, ModelConfig, ReinsConfig, ViTConfig
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.weights.reference_names import from_reference

GOLDEN = Path(__file__).parent.parent / "golden"

TINY = ModelConfig(
    classes=6,
    vit=ViTConfig(image_size=64, width=64, depth=4, heads=4, mlp_width=256, feature_blocks=(0, 1, 2, 3)),
    reins=ReinsConfig(tokens=8, rank=4),
    head=HeadConfig(
        width=32,
        heads=4,
        groups=8,
        encoder_layers=2,
        encoder_mlp_width=64,
        decoder_layers=3,
        decoder_mlp_width=64,
        queries=8,
    ),
)
TINY_MIM = MimConfig(width=32, image_size=64, token_size=64)


def load(name):
    """Return the arrays of a golden file."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def example(page, content=""):
    """Return the first Python example of a page of the documentation that contains this text."""
    return next(
        code for code in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE) if content in code
    )


@pytest.fixture(scope="session")
def golden():
    return load


@pytest.fixture(scope="session")
def noise():
    """Largest difference between the reference in float32 and in float64, per `file/stage`."""
    text = (GOLDEN / "tiny/float32_noise.json").read_text("utf-8")
    return {stage: float(value) for stage, value in json.loads(text).items()}


@pytest.fixture(scope="session")
def tiny_model():
    return SegmentationModel(TINY)


@pytest.fixture(scope="session")
def tiny_params():
    return jax.tree.map(jnp.asarray, from_reference(load("tiny/params")))


@pytest.fixture(scope="session")
def mim_config():
    return TINY_MIM
