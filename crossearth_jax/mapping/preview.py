"""A PNG that shows a scene beside its class map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from PIL import Image, ImageDraw, ImageFont

from crossearth_jax.mapping.map_layers import NODATA, Legend
from crossearth_jax.mapping.scene import Scene

LONGEST = 1024  # longest side of the scene in the picture, in pixels
GAP = 8  # pixels between scene, map and legend
LINE = 20  # height in pixels of one line of the legend
WHITE = (255, 255, 255)


def write_preview(scene: Scene, class_map: Path, target: Path, legend: Legend) -> None:
    """Write a PNG with the scene as 8-bit RGB, as the model receives it, its class map and the legend.

    Pixels without data are white.
    """
    image, valid = scene.thumbnail(LONGEST)
    with rasterio.open(class_map) as dataset:
        ids = dataset.read(1, out_shape=valid.shape)
    colours = np.full((NODATA + 1, 3), WHITE, np.uint8)
    colours[: len(legend.palette)] = legend.palette
    panels = [np.where(valid[..., None], image, np.uint8(255)), colours[ids]]
    height, width = valid.shape
    font = ImageFont.load_default(12)
    lines = _lines(legend, font, 2 * width + GAP)
    sheet = Image.new("RGB", (2 * width + GAP, height + GAP + LINE * (1 + max(line for line, _ in lines))), WHITE)
    for i, panel in enumerate(panels):
        sheet.paste(Image.fromarray(panel), (i * (width + GAP), 0))
    draw = ImageDraw.Draw(sheet)
    for (line, left), name, colour in zip(lines, legend.names, legend.palette, strict=True):
        top = height + GAP + line * LINE
        draw.rectangle((left, top, left + 12, top + 12), fill=colour, outline=(0, 0, 0))
        draw.text((left + 18, top + 6), name, fill=(0, 0, 0), font=font, anchor="lm")
    sheet.save(target, format="PNG", optimize=True)


def _lines(legend: Legend, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[tuple[int, int]]:
    """Return line number and first pixel column of every entry of the legend."""
    places, line, left = [], 0, 0
    for name in legend.names:
        needed = 18 + round(font.getlength(name)) + 16
        if left and left + needed > width:
            line, left = line + 1, 0
        places.append((line, left))
        left += needed
    return places
