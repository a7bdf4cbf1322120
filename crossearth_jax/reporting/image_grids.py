"""Figures for notebooks and papers: grids of images, and predictions beside the ground truth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Shaped, UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from crossearth_jax.benchmark import IGNORE

INCHES = 1.9  # side of an image
IGNORED = (255, 255, 255)  # colour of ignored pixels

Colours = Mapping[str, tuple[int, int, int]]  # class -> RGB, in the order of the class ids


def image_grid(columns: Mapping[str, Shaped[np.ndarray, "n h w 3"]]) -> Figure:
    """Draw images in a grid: one column per caption, one row per image.

    Args:
      columns: caption -> RGB images, uint8 or float in [0, 1]; the same number in each column.

    Raises:
      ValueError: the columns have different lengths.
    """
    rows = {len(images) for images in columns.values()}
    if len(rows) != 1:
        raise ValueError(f"columns of different lengths: { {name: len(images) for name, images in columns.items()} }")
    height = rows.pop()
    figure = Figure(figsize=(INCHES * len(columns), INCHES * height + 0.3), layout="constrained")
    axes = figure.subplots(height, len(columns), squeeze=False)
    for column, (caption, images) in enumerate(columns.items()):
        axes[0, column].set_title(caption, fontsize=9)
        for row, image in enumerate(images):
            axes[row, column].imshow(image, interpolation="nearest")
            axes[row, column].set_axis_off()
    return figure


def prediction_grid(
    images: UInt8[np.ndarray, "n h w 3"],
    labels: UInt8[np.ndarray, "n h w"],
    predictions: UInt8[np.ndarray, "n h w"],
    colours: Colours,
) -> Figure:
    """Draw one row per image with image, ground truth and prediction, and a legend; ignored pixels are white.

    Args:
      images: RGB images.
      labels: class ids; IGNORE for pixels without a label.
      predictions: class ids.
      colours: colour of each class.
    """
    figure = image_grid(
        {"image": images, "truth": coloured(labels, colours), "prediction": coloured(predictions, colours)}
    )
    patches = [Patch(color="#{:02x}{:02x}{:02x}".format(*colour), label=name) for name, colour in colours.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def coloured(labels: UInt8[np.ndarray, "*n h w"], colours: Colours) -> UInt8[np.ndarray, "*n h w 3"]:
    """Return a label map in the colours of its classes; ignored pixels are white."""
    table = np.full((IGNORE + 1, 3), IGNORED, np.uint8)
    table[: len(colours)] = list(colours.values())
    return table[labels]
