"""RescueNet: photographs of 80 x 60 pixels; the benchmark uses the test split."""

import numpy as np

from . import pictures

WIDTH, HEIGHT = 80, 60
IDS = ("10778", "11420")
COUNTS = {"test": 2}
# Official number -> train id of the five classes: impervious 0, building 1, vegetation 2, car 3, clutter 4.
TRAIN_IDS = np.array([4, 4, 1, 1, 1, 1, 3, 0, 0, 2, 4], np.uint8)
WATER = (1, 10)


def truth(name):
    """Return the JPEG file of the photograph, and official numbers 0 to 10."""
    numbers = pictures.labels(f"rescuenet {name}", HEIGHT, WIDTH, 11, ignored=False)
    image = pictures.photograph(f"rescuenet {name}", TRAIN_IDS[numbers])
    return pictures.encoded(image, "x.jpg"), numbers


def write(folder):
    """Write the official archive, with a train split that is not used."""
    files = {}
    for split, names in (("test", IDS), ("train", ("10781",))):
        for name in names:
            image, numbers = truth(name)
            files[f"RescueNet/{split}/{split}-org-img/{name}.jpg"] = image
            files[f"RescueNet/{split}/{split}-label-img/{name}_lab.png"] = numbers
    pictures.write_zip(folder / "RescueNet.zip", files)


def write_version_1(folder, sand=True):
    """Write version 1.0 with twelve classes: 1 is debris, so some numbers are larger by one, and 11 is sand."""
    files = {}
    for name in IDS:
        image, numbers = truth(name)
        twelve = np.array([0, 2, 3, 4, 5, 6, 7, 8, 8, 9, 10], np.uint8)[numbers]
        twelve[0, :2] = 1, 11 if sand else 1
        root = "rescuenet-test/test"
        files |= {f"{root}/test-org-img/{name}.jpg": image, f"{root}/test-label-img/{name}_lab.png": twelve}
    pictures.write_files(folder, files)


def write_repacked(folder):
    """Write the authors' archive: five classes as 1 to 5, one pixel ignored (0)."""
    files = {}
    for name in IDS:
        image, numbers = truth(name)
        stored = TRAIN_IDS[numbers] + 1
        stored[0, 0] = 0
        files |= {f"rescuenet/test-org-img/{name}.jpg": image, f"rescuenet/test-label-img/{name}_lab.png": stored}
    pictures.write_zip(folder / "RescueNet_test.zip", files)
