"""Pictures inside the page: images, class maps and error maps as data URIs, single or in strips."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from crossearth_jax.benchmark import IGNORE
from crossearth_jax.reporting.run import Evaluation, StyleExamples

MAX_SIDE = 384  # largest side in pixels of a picture in the page


class Picture(NamedTuple):
    """One picture of the page."""

    uri: str
    caption: str
    alt: str  # description for screen readers


def teaser(evaluation: Evaluation, domain: str) -> list[Picture]:
    """Return image, ground truth and prediction of a domain's first example."""
    uris = {
        "image": photograph(evaluation.images[0]),
        "truth": class_map(evaluation.labels[0], evaluation.palette),
        "prediction": class_map(evaluation.predictions[0], evaluation.palette),
    }
    return [Picture(uri, name, f"{domain}, first example: {name}") for name, uri in uris.items()]


def example_strips(evaluation: Evaluation, domain: str) -> list[list[Picture]]:
    """Return image, ground truth, prediction and error map of each example.

    The caption of the error map gives the share of the labelled pixels that are predicted correctly.
    """
    strips = []
    examples = zip(evaluation.images, evaluation.labels, evaluation.predictions, strict=True)
    for number, (image, truth, prediction) in enumerate(examples, 1):
        scored = truth != IGNORE
        right = f"errors: {np.mean(truth[scored] == prediction[scored]):.0%} correct" if scored.any() else "no labels"
        name = f"{domain}, example {number}"
        strips.append(
            [
                Picture(photograph(image), "image", f"{name}: image"),
                Picture(class_map(truth, evaluation.palette), "truth", f"{name}: truth"),
                Picture(class_map(prediction, evaluation.palette), "prediction", f"{name}: prediction"),
                Picture(error_map(image, truth, prediction), right, f"{name}: errors"),
            ]
        )
    return strips


def style_pairs(styles: StyleExamples) -> list[list[Picture]]:
    """Return each training image with its restyled version."""
    return [
        [
            Picture(photograph(image), "image", f"style {number}: image"),
            Picture(photograph(restyled), "restyled", f"style {number}: restyled"),
        ]
        for number, (image, restyled) in enumerate(zip(styles.images, styles.restyled, strict=True), 1)
    ]


def photograph(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """Return the data URI of an RGB image: PNG up to 128 pixels a side, else JPEG of at most `MAX_SIDE` pixels."""
    picture = Image.fromarray(image)
    if max(picture.size) <= 128:
        return _data_uri(picture, "png")
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return _data_uri(picture, "jpeg")


def class_map(labels: UInt8[np.ndarray, "h w"], palette: UInt8[np.ndarray, "k 3"]) -> str:
    """Return the data URI of a label map in the colours of the classes; ignored pixels are transparent."""
    picture = Image.fromarray(_shrunk(labels))
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    picture.putpalette(colours.tobytes())
    return _data_uri(picture, "png", transparency=IGNORE)


def class_colours(labels: UInt8[np.ndarray, "h w"], palette: UInt8[np.ndarray, "k 3"]) -> UInt8[np.ndarray, "h2 w2 4"]:
    """Return a label map as RGBA in the colours of the classes, subsampled as in the page; ignored is transparent."""
    colours = np.zeros((256, 4), np.uint8)
    colours[: len(palette)] = np.pad(palette, ((0, 0), (0, 1)), constant_values=255)
    return colours[_shrunk(labels)]


def error_map(
    image: UInt8[np.ndarray, "h w 3"], labels: UInt8[np.ndarray, "h w"], predictions: UInt8[np.ndarray, "h w"]
) -> str:
    """Return the data URI of `error_colours`."""
    return _data_uri(Image.fromarray(error_colours(image, labels, predictions)), "png")


def error_colours(
    image: UInt8[np.ndarray, "h w 3"], labels: UInt8[np.ndarray, "h w"], predictions: UInt8[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h2 w2 4"]:
    """Return an RGBA error map: the image in pale grey, wrong pixels in red, ignored pixels transparent."""
    labels, predictions = _shrunk(labels), _shrunk(predictions)
    size = (labels.shape[1], labels.shape[0])
    grey = np.asarray(Image.fromarray(image).convert("L").resize(size, Image.Resampling.BOX), np.float32)
    pale = np.repeat((140 + 0.4 * grey)[..., None], 3, axis=-1)
    wrong = ((labels != predictions) & (labels != IGNORE))[..., None]
    red = np.array([205, 45, 30], np.float32) * (0.75 + 0.25 * grey[..., None] / 255)
    alpha = np.where(labels == IGNORE, 0, 255).astype(np.uint8)[..., None]
    colours = np.where(wrong, red, pale).astype(np.uint8)
    return np.concatenate([colours, alpha], axis=-1)


def _shrunk(labels: np.ndarray) -> np.ndarray:
    stride = -(-max(labels.shape) // MAX_SIDE)
    return np.ascontiguousarray(labels[::stride, ::stride])


def _data_uri(picture: Image.Image, kind: str, **options: int) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, optimize=True, **({"quality": 85} if kind == "jpeg" else {}), **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
