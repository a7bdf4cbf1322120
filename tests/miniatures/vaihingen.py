"""Vaihingen: areas of different sizes, and area 9, which belongs to no split."""

from . import isprs, pictures

SIZES = {"area1": (600, 700), "area11": (512, 530), "area2": (700, 600), "area9": (520, 520)}  # height, width
SCENES = {"train": ("area1", "area11"), "val": ("area2",)}
COUNTS = {"train": 6, "val": 4}


def truth(scene):
    """Picture and train ids."""
    label = pictures.labels(f"vaihingen {scene}", *SIZES[scene], 6)
    return pictures.photograph(f"vaihingen {scene}", label), label


def write(folder):
    """The two official archives."""
    images = {f"top/top_mosaic_09cm_{scene}.tif": truth(scene)[0] for scene in SIZES}
    labels = {
        f"top_mosaic_09cm_{scene}_noBoundary.tif": pictures.lookup(isprs.PALETTE, truth(scene)[1]) for scene in SIZES
    }
    pictures.write_zip(folder / "ISPRS_semantic_labeling_Vaihingen.zip", images)
    pictures.write_zip(folder / "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE.zip", labels)


def write_repacked(folder):
    """Tiles as the authors' converter cuts them."""
    for split, names in SCENES.items():
        for scene in names:
            image, label = truth(scene)
            stored = pictures.lookup(isprs.STORED, label)
            folders = (f"img_dir/{split}", f"ann_dir/{split}")
            pictures.write_files(folder / "vaihingen_new", isprs.repacked(scene, image, stored, *folders))
