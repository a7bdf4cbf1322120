"""Synthetic images with labels, and functions that write them to files and zips."""

import io
import zipfile
import zlib

import numpy as np
from PIL import Image

IGNORE = 255
_COLOURS = np.array(
    [(200, 200, 190), (170, 60, 50), (90, 150, 60), (30, 90, 40), (60, 60, 200), (120, 90, 40), (0, 160, 160)]
)


def labels(name, height, width, classes, ignored=True, block=16):
    """Return random train ids in blocks of 16 pixels, seeded by the name; some pixels in the first row are ignored."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    coarse = rng.integers(0, classes, (-(-height // block), -(-width // block)), np.uint8)
    coarse.ravel()[:classes] = np.arange(classes)[: coarse.size]  # every class occurs
    fine = coarse.repeat(block, 0).repeat(block, 1)[:height, :width].copy()
    if ignored:
        fine[0, :3] = IGNORE
    return fine


def photograph(name, label):
    """Return an RGB image in which classes have different colours."""
    rng = np.random.default_rng(zlib.crc32(f"photograph {name}".encode()))
    colours = _COLOURS[np.minimum(label, len(_COLOURS) - 1)]
    light = rng.integers(-20, 20, (-(-label.shape[0] // 8), -(-label.shape[1] // 8))).repeat(8, 0).repeat(8, 1)
    return np.clip(colours + light[: label.shape[0], : label.shape[1], None], 0, 255).astype(np.uint8)


def lookup(table, label):
    """Return stored numbers or colours of train ids: `table[i]` for class i, 0 or black for ignored pixels."""
    values = np.array([*table, np.zeros_like(table[0])], np.uint8)
    return values[np.where(label == IGNORE, len(table), label)]


def encoded(pixels, name):
    """Return the pixels encoded in the format of the extension of `name`."""
    form = {"png": "PNG", "tif": "TIFF", "tiff": "TIFF", "jpg": "JPEG"}[name.rsplit(".", 1)[1]]
    options = {"compression": "tiff_lzw"} if form == "TIFF" else {"quality": 95} if form == "JPEG" else {}
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=form, **options)
    return buffer.getvalue()


def uncompressed(pixels):
    """Return a TIFF file whose number of bytes depends only on the number of pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="TIFF")
    return buffer.getvalue()


def decoded(data):
    """Return the pixels of an encoded file."""
    return np.asarray(Image.open(io.BytesIO(data)))


def write_zip(path, pictures, stored=False):
    """Write a zip of {name: pixels or bytes}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED) as archive:
        for name, content in pictures.items():
            archive.writestr(name, content if isinstance(content, bytes) else encoded(content, name))


def write_files(folder, pictures):
    """Write {name: pixels or bytes} as files."""
    for name, content in pictures.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else encoded(content, name))
