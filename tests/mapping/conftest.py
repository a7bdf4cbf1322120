"""A model whose scores are known exactly, and scenes to apply it to."""

import dataclasses

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from crossearth_jax.inference.windows import SlidingWindows
from crossearth_jax.mapping.map_layers import Legend

ROTATED = Affine.translation(500_000, 4_000_000) @ Affine.rotation(20) @ Affine.scale(2, -2)
UTM = "EPSG:32618"


@dataclasses.dataclass
class PixelRule:
    """Scores each pixel by its own colour, so blended windows must equal one call on the whole image."""

    class_names: tuple[str, ...] = ("red", "green", "blue & <cold>", "dark")
    palette: tuple[tuple[int, int, int], ...] = ((200, 30, 30), (30, 160, 60), (40, 80, 200), (40, 40, 40))
    window: int = 48
    multiple: int = 16
    shapes: list[tuple[int, ...]] = dataclasses.field(default_factory=list)

    @property
    def legend(self):
        return Legend(self.class_names, self.palette)

    def windows(self, **options):
        return SlidingWindows(
            score=lambda *batch: self.score(*batch),
            classes=len(self.class_names),
            window=self.window,
            multiple=self.multiple,
            **{"stride": self.window * 2 // 3} | options,
        )

    def score(self, images, valid):
        self.shapes.append(images.shape)
        colours = images.astype(np.float32)
        dark = np.maximum(240 - colours.sum(-1, keepdims=True) / 2, 0)
        return np.concatenate([colours, dark], -1)


@pytest.fixture
def rule():
    return PixelRule()


@pytest.fixture
def write_scene(tmp_path):
    """Write bands (count, h, w) as GeoTIFF and return the path."""

    def write(bands, name="scene.tif", *, mask=None, colours=None, names=None, tags=None, **profile):
        profile = {"crs": UTM, "transform": ROTATED, "driver": "GTiff"} | profile
        count, height, width = bands.shape
        path = str(tmp_path / name)
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(path, "w", count=count, height=height, width=width, dtype=bands.dtype, **profile) as dataset,
        ):
            if colours:
                dataset.colorinterp = colours  # before the pixels, since the header of the file marks the alpha band
            dataset.write(bands)
            if names:
                dataset.descriptions = names
            if tags:
                dataset.update_tags(**tags)
            if mask is not None:
                dataset.write_mask(mask)
        return path

    return write
