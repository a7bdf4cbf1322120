"""Images of noise with labels in blocks, which both sides of a comparison are given. Needs numpy alone."""

from __future__ import annotations

import numpy as np

BLOCKS, CLASSES = 8, 6


def random_images(side: int, batch: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """8-bit pixels (b, side, side, 3), and labels (b, side, side) of six classes in 8 x 8 blocks; always the same."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (batch, side, side, 3), np.uint8)
    blocks = random.integers(0, CLASSES, (batch, BLOCKS, BLOCKS), np.uint8)
    return pixels, blocks.repeat(side // BLOCKS, 1).repeat(side // BLOCKS, 2)
