"""WHU Building: aerial tiles in three splits and satellite tiles in two, of 64 pixels; names repeat across splits."""

import numpy as np

from . import pictures

SIDE = 64
AERIAL = {"train": ("0", "1", "2"), "val": ("0", "1"), "test": ("0",)}
SATELLITE = {"train": ("0", "1", "2"), "test": ("0", "1")}
EMPTY = {"train": ("0", "7", "8", "9"), "test": ("0",)}  # satellite tiles without buildings, in separate folders
COUNTS = {"aerial": {"train": 3, "val": 2, "test": 1}, "satellite_ii": {"train": 7, "test": 3}}


def truth(platform, split, name):
    """Return image and train ids."""
    key = f"whu {platform} {split} {name}"
    label = pictures.labels(key, SIDE, SIDE, 2, ignored=False)
    return pictures.photograph(key, label), label


def _files(platform, split, names, folder, label_folder, bright):
    found = {}
    for name in names:
        image, label = truth(platform, split, name)
        found[f"{folder}/image/{name}.tif"] = image
        found[f"{folder}/{label_folder}/{name}.tif"] = label * bright
    return found


def empty(split, name):
    """Return image and train ids of a satellite tile without buildings."""
    label = np.zeros((SIDE, SIDE), np.uint8)
    return pictures.photograph(f"whu {split}_no {name}", label), label


def write(folder):
    """Write official splits, with labels 0 and 255; the satellite archive as a zip, the aerial one unpacked."""
    root = "3. The cropped image tiles and raster labels"
    for split, names in AERIAL.items():
        pictures.write_files(folder / root, _files("aerial", split, names, split, "label", 255))
    root = "Satellite dataset \u2161 (East Asia)/1. The cropped image data and raster labels"
    files = {}
    for split, names in SATELLITE.items():
        files |= _files("satellite", split, names, f"{root}/{split}", "label", 255)
        for name in EMPTY[split]:
            image, label = empty(split, name)
            files |= {f"{root}/{split}_no/image/{name}.tif": image, f"{root}/{split}_no/label/{name}.tif": label}
    pictures.write_zip(folder / "Satellite dataset \u2161 (East Asia).zip", files)


def write_repacked(folder):
    """Write the authors' folders, with labels 0 and 1; their aerial `test` is the official validation split."""
    files = {
        **_files("aerial", "train", AERIAL["train"], "WHU/Aerial/train", "label2", 1),
        **_files("aerial", "val", AERIAL["val"], "WHU/Aerial/test", "label2", 1),
    }
    for split, names in SATELLITE.items():
        files |= _files("satellite", split, names, f"WHU/Satellite/{split}_all", "label", 1)
    pictures.write_zip(folder / "WHU.zip", files)
