"""Potsdam: two scenes for training and one for validation of 1100 x 600 pixels, six tiles each."""

from . import isprs, pictures

SCENES = {"train": ("2_10", "7_9"), "val": ("2_13",)}
WIDTH, HEIGHT = 1100, 600
COUNTS = {"train": 12, "val": 6}
FIVE = (0, 1, 2, 2, 3, 4)  # six classes -> five


def truth(scene, bands):
    """Picture and train ids of the six classes."""
    label = pictures.labels(f"potsdam {scene}", HEIGHT, WIDTH, 6)
    image = pictures.photograph(f"potsdam {scene}", label)
    return (image if bands == "RGB" else image[..., ::-1].copy()), label


def scenes():
    """Every scene."""
    return [scene for split in SCENES.values() for scene in split]


def write(folder):
    """The three official archives."""
    for archive, bands in (("2_Ortho_RGB", "RGB"), ("3_Ortho_IRRG", "IRRG")):
        files = {f"{archive}/top_potsdam_{scene}_{bands}.tif": truth(scene, bands)[0] for scene in scenes()}
        pictures.write_zip(folder / f"{archive}.zip", files)
    labels = {
        f"top_potsdam_{scene}_label_noBoundary.tif": pictures.lookup(isprs.PALETTE, truth(scene, "RGB")[1])
        for scene in scenes()
    }
    pictures.write_zip(folder / "5_Labels_all_noBoundary.zip", labels)


def write_repacked(folder, five=False):
    """Tiles as the authors' converter cuts them; with five classes in their folder Potsdam_Res."""
    table = [FIVE[label] + 1 for label in range(6)] if five else isprs.STORED
    for bands in ("RGB", "IRRG"):
        root = folder / ("Potsdam_Res" if five else "potsdam_1-6") / bands
        for split, names in SCENES.items():
            for scene in names:
                image, label = truth(scene, bands)
                stored = pictures.lookup(table, label)
                folders = (f"img_dir/{split}", f"ann_dir/{split}")
                pictures.write_files(root, isprs.repacked(scene, image, stored, *folders))
