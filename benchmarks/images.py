"""Random images with labels in blocks, the same for both sides of a comparison. Needs numpy only."""

from __future__ import annotations

import numpy as np

BLOCKS, CLASSES = 8, 6


def random_images(side: int, batch: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels (b, side, side, 3), uint8, and labels (b, side, side), six classes in 8 x 8 blocks; fixed seed."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (batch, side, side, 3), np.uint8)
    blocks = random.integers(0, CLASSES, (batch, BLOCKS, BLOCKS), np.uint8)
    return pixels, blocks.repeat(side // BLOCKS, 1).repeat(side // BLOCKS, 2)
