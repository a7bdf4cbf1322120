"""WHU Building: aerial tiles in three splits and satellite tiles in two, of 64 pixels; names repeat across splits."""

from . import pictures

SIDE = 64
AERIAL = {"train": ("0", "1", "2"), "val": ("0", "1"), "test": ("0",)}
SATELLITE = {"train": ("0", "1", "2"), "test": ("0", "1")}
COUNTS = {"aerial": {"train": 3, "val": 2, "test": 1}, "satellite_ii": {"train": 3, "test": 2}}


def truth(platform, split, name):
    """Picture and train ids."""
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


def write(folder):
    """Official splits, labels 0 and 255; the satellite tiles' archive as a zip, the aerial ones unpacked."""
    for split, names in AERIAL.items():
        pictures.write_files(folder / "aerial", _files("aerial", split, names, split, "label", 255))
    root = "1. The cropped image data and raster labels"
    files = {}
    for split, names in SATELLITE.items():
        files |= _files("satellite", split, names, f"{root}/{split}", "label", 255)
    pictures.write_zip(folder / "Satellite dataset II (East Asia).zip", files)


def write_repacked(folder):
    """The authors' folders, labels 0 and 1; their aerial `test` is the official validation split."""
    files = {
        **_files("aerial", "train", AERIAL["train"], "WHU/Aerial/train", "label2", 1),
        **_files("aerial", "val", AERIAL["val"], "WHU/Aerial/test", "label2", 1),
    }
    for split, names in SATELLITE.items():
        files |= _files("satellite", split, names, f"WHU/Satellite/{split}_all", "label", 1)
    pictures.write_zip(folder / "WHU.zip", files)
