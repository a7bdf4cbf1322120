"""DeepGlobe Road Extraction: three labelled images of 64 pixels; the other splits have no masks."""

import numpy as np

from . import pictures

SIDE = 64
IDS = ("100034", "999764", "2")
COUNTS = {"train": 3}


def truth(name):
    """Return the JPEG file of the image, and train ids."""
    label = pictures.labels(f"deepglobe {name}", SIDE, SIDE, 2, ignored=False)
    return pictures.encoded(pictures.photograph(f"deepglobe {name}", label), "x.jpg"), label


def write(folder):
    """Write the zip of the Kaggle mirror; masks are RGB and not pure black and white: 128 to 255 is road."""
    files = {}
    for name in IDS:
        image, label = truth(name)
        grey = np.where(label == 1, 255, 0).astype(np.uint8)
        grey[5, :4] = np.where(label[5, :4] == 1, 128, 127)
        files[f"train/{name}_sat.jpg"] = image
        files[f"train/{name}_mask.png"] = np.repeat(grey[..., None], 3, axis=-1)
    files["valid/1_sat.jpg"] = truth("1")[0]
    files["test/3_sat.jpg"] = truth("3")[0]
    pictures.write_zip(folder / "archive.zip", files)


def write_repacked(folder):
    """Write masks of 0 and 1."""
    for name in IDS:
        image, label = truth(name)
        pictures.write_files(folder / "DeepGlobe/train", {f"{name}_sat.jpg": image, f"{name}_mask.png": label})
