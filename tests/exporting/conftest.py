"""Small models with every head, and images in the form that exported models expect."""

from pathlib import Path

import jax
import numpy as np
import pytest

from crossearth_jax.config import HeadConfig, ModelConfig, ViTConfig
from crossearth_jax.convert import read_config
from crossearth_jax.inference.segmentor import Segmentor
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.weights.native import Description
from crossearth_jax.weights.reference_names import from_reference

GOLDEN = Path(__file__).parents[1] / "golden/tiny"
NAMES = ("water", "forest", "shrub", "crop", "bare", "snow")
PALETTE = tuple((i, 10 * i, 255 - i) for i in range(6))


def described(model):
    return Description(
        model=model,
        class_names=NAMES,
        palette=PALETTE,
        source="tiny, step 4",
        window=model.vit.image_size,
        stride=2 * model.vit.image_size // 3,
        bands=("nir", "red", "green"),
        gsd=0.05,
        trained_on="potsdam/irrg",
    )


@pytest.fixture(scope="session")
def random_model():
    """Return a function that builds a model with random weights: `random_model(kind_of_head, dtype, **vit)`."""

    def build(kind, dtype, **vit):
        config = ModelConfig(
            classes=6,
            vit=ViTConfig(image_size=32, width=16, depth=4, heads=2, mlp_width=16, feature_blocks=(0, 1, 2, 3), **vit),
            reins=None,
            head=HeadConfig(
                kind=kind,
                width=8,
                heads=2,
                groups=2,
                encoder_layers=1,
                encoder_mlp_width=8,
                points=2,
                decoder_layers=1,
                decoder_mlp_width=8,
                queries=4,
                last_blocks=2,
            ),
            dtype=dtype,
        )
        model = SegmentationModel(config)
        params = jax.jit(model.init)(jax.random.key(0))
        return Segmentor(model, params, described(config))

    return build


@pytest.fixture(scope="session")
def reference_model():
    """Return the network of the golden numbers with the weights of the reference."""
    config = read_config(GOLDEN / "model.json")
    with np.load(GOLDEN / "params.npz") as file:
        params = {name: jax.numpy.asarray(value) for name, value in from_reference(dict(file)).items()}
    return Segmentor(SegmentationModel(config), params, described(config))


@pytest.fixture(scope="session")
def reference_result():
    """Return images and, from the reference's scores, the probabilities that the exported network must return."""
    with np.load(GOLDEN / "forward.npz") as file:
        images, scores = file["input"], file["seg_logits"]
    return images, scores / scores.sum(1, keepdims=True)
