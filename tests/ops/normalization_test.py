"""Normalisation compared with the reference's preprocessor."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from einops import rearrange

from crossearth_jax.ops.normalization import denormalize, normalize, standardize

GOLDEN = Path(__file__).parent.parent / "golden/tiny/preprocess.npz"


def test_equals_the_reference_and_inverts():
    with np.load(GOLDEN) as file:
        golden = dict(file)
    for i, expected in enumerate(golden["inputs"]):
        image = rearrange(golden[f"img{i}_bgr"][::-1], "c h w -> h w c")
        height, width = image.shape[:2]
        normalised = normalize(jnp.asarray(image))
        np.testing.assert_allclose(rearrange(normalised, "h w c -> c h w"), expected[:, :height, :width], atol=1e-6)
        np.testing.assert_allclose(denormalize(normalised), image, atol=1e-4)


def test_other_statistics_take_the_place_of_imagenets():
    images = jnp.asarray([[[[60, 40, 20], [50, 60, 10]]]], jnp.uint8)
    found = standardize(normalize(images), (50.0, 60.0, 30.0), (20.0, 10.0, 5.0))
    np.testing.assert_allclose(found, [[[[0.5, -2, -2], [0, 0, -4]]]], atol=1e-5)
