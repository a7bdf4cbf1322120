"""Fingerprints of images, to find equal and nearly equal ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

NEAR = 4  # bits of 64 in which the hashes of nearly equal images may differ
_CONTRAST = 8  # smallest difference of grey values between darkest and brightest cell for a meaningful hash


def digest(image: UInt8[np.ndarray, "h w 3"]) -> str | None:
    """Return a digest of the pixels; None for an image of one colour, since equal empty tiles are no duplicates."""
    if (image == image[0, 0]).all():
        return None
    return hashlib.sha256(image.tobytes()).hexdigest()


def perceptual_hash(image: UInt8[np.ndarray, "h w 3"]) -> int | None:
    """Return a 64-bit hash of the image: for each of 8 x 8 cells one bit, 1 if its right neighbour is brighter.

    Images that differ in compression, brightness or a few objects have nearly the same bits. The result is None for an
    image with too little contrast.
    """
    cells = np.asarray(Image.fromarray(image).convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    if np.ptp(cells) < _CONTRAST:
        return None
    return int.from_bytes(np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes())


def near_pairs(first: Sequence[tuple[str, int]], second: Sequence[tuple[str, int]]) -> list[tuple[str, str]]:
    """Return pairs of names, one of each group, whose hashes differ in at most `NEAR` bits, in order of the first."""
    others = np.array([value for _, value in second], np.uint64)
    found = list[tuple[str, str]]()
    for name, value in first:
        near = np.flatnonzero(np.bitwise_count(others ^ np.uint64(value)) <= NEAR)
        found += [(name, second[index][0]) for index in near.tolist()]
    return found
