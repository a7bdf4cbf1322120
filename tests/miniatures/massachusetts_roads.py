"""Massachusetts Roads: images of 96 pixels in three splits."""

from . import pictures

SIDE = 96
SCENES = {"train": ("10078660_15", "10078675_15"), "val": ("10228690_15",), "test": ("10378780_15", "10828720_15")}
COUNTS = {"train": 2, "val": 1, "test": 2}


def truth(name):
    """Picture and train ids."""
    label = pictures.labels(f"massachusetts {name}", SIDE, SIDE, 2, ignored=False)
    return pictures.photograph(f"massachusetts {name}", label), label


def _files(kind, bright):
    found = {}
    for split, names in SCENES.items():
        for name in names:
            image, label = truth(name)
            found[f"{split}/{name}.tiff"] = image
            found[f"{split}_{kind}/{name}.tif"] = label * bright
    return found


def write(folder):
    """The official folders, labels 0 and 255."""
    pictures.write_files(folder / "tiff", _files("labels", 255))


def write_repacked(folder):
    """The authors' archive: labels rewritten to 0 and 1 beside the official ones."""
    pictures.write_zip(folder / "Massachusetts.zip", _files("labels", 255) | _files("labels_new", 1))
