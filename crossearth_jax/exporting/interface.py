"""What an exported model expects and returns, the same for every format, and the description that goes with it.

Input: float32 (b, 3, s, s), RGB divided by 255, then standardised with the mean and standard deviation of the
description; s is the side of the sliding window. Output: float32 (b, classes, s, s), probabilities that sum to 1 over
the classes.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from crossearth_jax.inference.segmentor import Segmentor
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.ops.normalization import MEAN, STD
from crossearth_jax.ops.probabilities import probabilities

INPUT, OUTPUT = "input", "output"  # names in the exported model


def class_probabilities(segmentor: Segmentor, images: Float[Array, "b 3 s s"]) -> Float[Array, "b k s s"]:
    """Compute the output of an exported model, in float32 whatever the precision of training.

    The probabilities are those of `ops.probabilities`, with the temperature of the description if it has one. They have
    the same order of classes as the scores.
    """
    model = SegmentationModel(dataclasses.replace(segmentor.model.config, dtype="float32"))
    scores = model.scores(segmentor.params, jnp.moveaxis(images, 1, -1))
    return jnp.moveaxis(probabilities(scores, segmentor.description.temperature or 1.0), 0, 1)


def input_shape(segmentor: Segmentor) -> jax.ShapeDtypeStruct:
    """Return shape and type of the input; the number of images is symbolic."""
    (images,) = jax.export.symbolic_shape("b")
    return jax.ShapeDtypeStruct((images, 3, segmentor.window, segmentor.window), jnp.float32)


def metadata(segmentor: Segmentor) -> dict[str, Any]:
    """Return the description of an exported model, in the terms of the QGIS plugin Deepness where it has one.

    The resolution is left out if the model has no single ground resolution. Keys that Deepness does not have: `palette`
    (RGB by class id), `bands`, `trained_on`, `source`.
    """
    described = segmentor.description
    names = described.class_names or tuple(f"class {i}" for i in range(segmentor.classes))
    found: dict[str, Any] = {
        "model_type": "Segmentor",
        "class_names": {str(i): name for i, name in enumerate(names)},
        "tile_size": segmentor.window,
        "tiles_overlap": round(100 * (1 - segmentor.stride / segmentor.window)),  # percent
        "standardization_mean": (MEAN / 255).tolist(),
        "standardization_std": (STD / 255).tolist(),
        "seg_thresh": 0.0,  # Deepness sets scores below it to zero
        "seg_small_segment": 0,  # pixels; Deepness removes smaller segments
        "palette": {str(i): list(colour) for i, colour in enumerate(segmentor.palette)},
        "bands": list(described.bands),
        "trained_on": described.trained_on,
        "source": described.source,
    }
    if described.gsd is not None:
        found["resolution"] = 100 * described.gsd  # centimetres per pixel
    return found


def metadata_strings(segmentor: Segmentor) -> dict[str, str]:
    """Return `metadata` with every value as JSON, as ONNX files store it."""
    return {key: json.dumps(value) for key, value in metadata(segmentor).items()}
