"""Telling the same image, and nearly the same image, from a few bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

NEAR = 4  # bits of 64 in which the hashes of nearly equal images may differ
_CONTRAST = 8  # grey values between the darkest and brightest cell below which a hash says nothing


def digest(image: UInt8[np.ndarray, "h w 3"]) -> str | None:
    """Digest of the pixels; None for an image of one colour, since empty tiles may well be equal."""
    if (image == image[0, 0]).all():
        return None
    return hashlib.sha256(image.tobytes()).hexdigest()


def perceptual_hash(image: UInt8[np.ndarray, "h w 3"]) -> int | None:
    """64 bits that say of 8 x 8 cells whether the next one on the right is brighter.

    Images that differ in compression, brightness or a few objects have nearly the same bits. None for an image with too
    little contrast.
    """
    cells = np.asarray(Image.fromarray(image).convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    if np.ptp(cells) < _CONTRAST:
        return None
    return int.from_bytes(np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes())


def near_pairs(first: Sequence[tuple[str, int]], second: Sequence[tuple[str, int]]) -> list[tuple[str, str]]:
    """Names of images of both groups whose hashes differ in at most `NEAR` bits, in the order of the first group."""
    others = np.array([value for _, value in second], np.uint64)
    found = list[tuple[str, str]]()
    for name, value in first:
        near = np.flatnonzero(np.bitwise_count(others ^ np.uint64(value)) <= NEAR)
        found += [(name, second[index][0]) for index in near.tolist()]
    return found
