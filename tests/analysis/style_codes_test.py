"""Batching of the style codes; the numbers are tested with the command `estimate_style`, which uses them."""

import numpy as np

from crossearth_jax.analysis.style_codes import code_moments
from crossearth_jax.models.style_network import StyleNetwork


class MeanColour(StyleNetwork):
    """A style network whose code is the mean colour."""

    def encode(self, params, images):
        return images.mean((1, 2))


def test_copies_that_fill_the_last_batch_do_not_count():
    images = [np.full((5, 7, 3), 10 * value, np.uint8) for value in range(5)]
    steps = [(m.count, m.mean[0] * 255) for m in code_moments(MeanColour(), {}, iter(images), batch_size=2)]
    np.testing.assert_allclose(steps, [(2, 5), (4, 15), (5, 20)], rtol=1e-6)


def test_no_images_give_nothing():
    assert list(code_moments(MeanColour(), {}, [])) == []
