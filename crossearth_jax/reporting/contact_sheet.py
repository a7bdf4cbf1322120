"""Images with their labels drawn over them, many on a page: what people look at before they train."""

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

SIDE = 320  # pixels of the longer side of an image
COLUMNS = 4
INCHES = 2.4  # width of an image; it stands beside itself with labels
OPACITY = 0.4  # of the labels' colours
OUTLINE = (255, 255, 255)


def contact_sheet(
    examples: Iterable[tuple[str, UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]],
    colours: Colours,
    title: str,
    target: Path,
) -> None:
    """Draws each image beside itself with labels over it, and the shares of the classes in these images below.

    Args:
      examples: id, image and label.
      colours: of the classes.
      title: of the page.
      target: PNG file; its folder is made.

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
    patches.append(Patch(facecolor="none", edgecolor="grey", label=f"ignored (as it is) {shares[IGNORE]:.1%}"))
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
    """The image tinted by class, with white lines between classes; ignored pixels stay as they are."""
    tinted = (1 - OPACITY) * image + OPACITY * coloured(label, colours)
    drawn = np.where((label == IGNORE)[..., None], image, np.rint(tinted).astype(np.uint8))
    edges = np.zeros(label.shape, bool)
    edges[1:] |= label[1:] != label[:-1]
    edges[:, 1:] |= label[:, 1:] != label[:, :-1]
    drawn[edges] = OUTLINE
    return drawn
