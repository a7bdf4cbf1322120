"""Massachusetts Roads: images of 96 pixels in three splits."""

from . import pictures

SIDE = 96
SCENES = {"train": ("10078660_15", "10078675_15"), "val": ("10228690_15",), "test": ("10378780_15", "10828720_15")}
COUNTS = {"train": 2, "val": 1, "test": 2}


def truth(name):
    """Return image and train ids."""
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
    """Write the folders of the home page, with labels 0 and 255."""
    for split, names in SCENES.items():
        root = folder / "mass_roads" / {"val": "valid"}.get(split, split)
        for name in names:
            image, label = truth(name)
            pictures.write_files(root, {f"sat/{name}.tiff": image, f"map/{name}.tif": label * 255})


def write_kaggle(folder):
    """Write the folders of the Kaggle copy, with labels 0 and 255."""
    pictures.write_zip(folder / "archive.zip", {f"tiff/{name}": file for name, file in _files("labels", 255).items()})


def write_repacked(folder):
    """Write the authors' archive: labels of 0 and 1 beside those of the Kaggle copy."""
    pictures.write_zip(folder / "Massachusetts.zip", _files("labels", 255) | _files("labels_new", 1))
