"""Potsdam: two scenes for training and one for validation of 1100 x 600 pixels, six tiles each."""

import numpy as np

from . import isprs, pictures

SCENES = {"train": ("2_10", "7_9"), "val": ("2_13",)}
WIDTH, HEIGHT = 1100, 600
COUNTS = {"train": 12, "val": 6}
FIVE = (0, 1, 2, 2, 3, 4)  # six classes -> five


def truth(scene, bands):
    """Return image and train ids of the six classes."""
    label = pictures.labels(f"potsdam {scene}", HEIGHT, WIDTH, 6)
    image = pictures.photograph(f"potsdam {scene}", label)
    return (image if bands == "RGB" else image[..., ::-1].copy()), label


def scenes():
    """Return every scene."""
    return [scene for split in SCENES.values() for scene in split]


def write(folder):
    """Write the official archives, including some that are not needed."""
    for archive, bands in (("2_Ortho_RGB", "RGB"), ("3_Ortho_IRRG", "IRRG")):
        files = {f"{archive}/top_potsdam_{scene}_{bands}.tif": truth(scene, bands)[0] for scene in scenes()}
        files |= {name.replace(".tif", ".tfw"): b"0.05" for name in files}
        pictures.write_zip(folder / f"{archive}.zip", files)
    for archive, end in (("5_Labels_all_noBoundary", "label_noBoundary"), ("5_Labels_all", "label")):
        files = {}
        for scene in scenes():
            label = truth(scene, "RGB")[1]
            shown = label if end == "label_noBoundary" else label % 6
            files[f"top_potsdam_{scene}_{end}.tif"] = pictures.lookup(isprs.PALETTE, shown)
        pictures.write_zip(folder / f"{archive}.zip", files)
    surface = {f"dsm_potsdam_{scene.zfill(5)}.tif": truth(scene, "RGB")[0][..., 0] for scene in scenes()}
    pictures.write_zip(folder / "1_DSM.zip", surface)


def faded(scene):
    """Return the colours of a label like the real label of 4_12: mixed with a sixth of the photograph."""
    image, label = truth(scene, "RGB")
    return np.round(0.83 * pictures.lookup(isprs.PALETTE, label) + 0.17 * image.astype(float)).astype(np.uint8)


def write_repacked(folder, five=False):
    """Write tiles as cut by the authors' converter; with five classes, in their folder Potsdam_Res."""
    table = [FIVE[label] + 1 for label in range(6)] if five else isprs.STORED
    for bands in ("RGB", "IRRG"):
        root = folder / ("Potsdam_Res" if five else "potsdam_1-6") / bands
        for split, names in SCENES.items():
            for scene in names:
                image, label = truth(scene, bands)
                stored = pictures.lookup(table, label)
                folders = (f"img_dir/{split}", f"ann_dir/{split}")
                pictures.write_files(root, isprs.repacked(scene, image, stored, *folders))
