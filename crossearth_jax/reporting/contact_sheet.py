"""Contact sheet: many images with their labels drawn over them on one page, to check a dataset before training."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from crossearth_jax.benchmark import IGNORE
from crossearth_jax.reporting.image_grids import Colours, coloured
from crossearth_jax.runtime.atomic import replacing

SIDE = 320  # largest side of an image in pixels
COLUMNS = 4
INCHES = 2.4  # width of an image; each is drawn twice, without and with labels
OPACITY = 0.4  # opacity of the labels' colours over the image
OUTLINE = (255, 255, 255)  # colour of the lines between classes


def contact_sheet(
    examples: Iterable[tuple[str, UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]],
    colours: Colours,
    title: str,
    target: Path,
) -> None:
    """Draw every image without and with its labels, and below all of them the share of each class in these images.

    Args:
      examples: id, image and label of each example.
      colours: colour of each class.
      title: title of the page.
      target: PNG file to write; its folder is created.

    Raises:
      UserError: the file cannot be written.
    """
    cells, counts = list[tuple[str, np.ndarray]](), np.zeros(IGNORE + 1, np.int64)
    for name, image, label in examples:
        counts += np.bincount(label.ravel(), minlength=IGNORE + 1)
        image, label = _thumbnail(image, label)
        cells.append((name, np.concatenate([image, _drawn_over(image, label, colours)], axis=1)))
    rows = -(-len(cells) // COLUMNS)
    figure = Figure(figsize=(2 * INCHES * min(COLUMNS, len(cells)), (INCHES + 0.25) * rows + 1), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(rows, min(COLUMNS, len(cells)), squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (name, pixels) in zip(axes, cells, strict=False):
        axis.imshow(pixels, interpolation="nearest")
        axis.set_title(name, fontsize=7)
    shares = counts / max(counts.sum(), 1)
    patches = [
        Patch(color="#{:02x}{:02x}{:02x}".format(*colour), label=f"{name} {shares[index]:.1%}")
        for index, (name, colour) in enumerate(colours.items())
    ]
    patches.append(Patch(facecolor="none", edgecolor="grey", label=f"ignored (not coloured) {shares[IGNORE]:.1%}"))
    figure.legend(handles=patches, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _thumbnail(
    image: UInt8[np.ndarray, "h w 3"], label: UInt8[np.ndarray, "h w"]
) -> tuple[UInt8[np.ndarray, "h2 w2 3"], UInt8[np.ndarray, "h2 w2"]]:
    scale = min(1.0, SIDE / max(label.shape))
    size = max(1, round(label.shape[1] * scale)), max(1, round(label.shape[0] * scale))
    small = Image.fromarray(image).resize(size, Image.Resampling.BOX)
    return np.asarray(small), np.asarray(Image.fromarray(label).resize(size, Image.Resampling.NEAREST))


def _drawn_over(
    image: UInt8[np.ndarray, "h w 3"], label: UInt8[np.ndarray, "h w"], colours: Colours
) -> UInt8[np.ndarray, "h w 3"]:
    """Return the image tinted in the class colours, with white lines between classes; ignored pixels are unchanged."""
    tinted = (1 - OPACITY) * image + OPACITY * coloured(label, colours)
    drawn = np.where((label == IGNORE)[..., None], image, np.rint(tinted).astype(np.uint8))
    edges = np.zeros(label.shape, bool)
    edges[1:] |= label[1:] != label[:-1]
    edges[:, 1:] |= label[:, 1:] != label[:, :-1]
    drawn[edges] = OUTLINE
    return drawn
