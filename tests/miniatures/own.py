"""Small user domains: a `domains.toml` with pictures, rasters and polygons."""

from pathlib import Path

import numpy as np
import pyogrio.raw
import rasterio
import shapely
from PIL import Image

from crossearth_jax.benchmark.domains_file import read_domains_file

CLASSES = '["building", "road", "land"]'
UTM = "EPSG:32632"


def domains(folder, rows, classes=CLASSES, name="domains.toml"):
    """Write the file with `rows` for the single domain x, or with whole tables, and read it."""
    tables = rows if "[domains." in rows else f"[domains.x]\n{rows}"
    (folder / name).write_text(f"[taxonomy]\nclasses = {classes}\n{tables}", "utf-8")
    return read_domains_file(folder / name)


def picture(path, size=(40, 30), seed=0):
    """Write a noisy RGB picture of (width, height); return its pixels."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    save(path, pixels)
    return pixels


def save(path, pixels):
    """Write an array as a picture file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels)).save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))


def pairs(folder, count=4, size=(40, 30), classes=3):
    """Write pictures i/1.png … with labels l/1.png …; return the labels."""
    labels = {}
    for number in range(1, count + 1):
        picture(folder / f"i/{number}.png", size, seed=number)
        labels[number] = np.random.default_rng(number).integers(0, classes, (size[1], size[0])).astype(np.uint8)
        save(folder / f"l/{number}.png", labels[number])
    return labels


def raster(path, values, corner=(500_000, 5_000_000), pixel=2.0, crs=UTM, descriptions=(), **profile):
    """Write a GeoTIFF of (bands, h, w) values with the upper left corner at `corner`."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    transform = rasterio.transform.from_origin(*corner, pixel, pixel)
    bands, height, width = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=bands, height=height, width=width, dtype=values.dtype, crs=crs,
        transform=transform, **profile,
    ) as dataset:  # fmt: skip
        dataset.write(values)
        for band, name in enumerate(descriptions, 1):
            dataset.set_band_description(band, name)


def vector(path, shapes, kinds=None, crs=UTM, driver=None):
    """Write polygons with a column `kind`."""
    fields = [] if kinds is None else [np.array(kinds, object)]
    pyogrio.raw.write(
        path, shapely.to_wkb(np.array(shapes, object)), fields, [] if kinds is None else ["kind"],
        geometry_type="Unknown", crs=crs, **({"driver": driver} if driver else {}),
    )  # fmt: skip
