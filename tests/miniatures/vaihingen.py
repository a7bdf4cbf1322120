"""Vaihingen: areas of different sizes, and area 9, which belongs to no split."""

from . import isprs, pictures

SIZES = {"area1": (600, 700), "area11": (512, 530), "area2": (700, 600), "area9": (520, 520)}  # height, width
SCENES = {"train": ("area1", "area11"), "val": ("area2",)}
COUNTS = {"train": 6, "val": 4}


def truth(scene):
    """Return image and train ids."""
    label = pictures.labels(f"vaihingen {scene}", *SIZES[scene], 6)
    return pictures.photograph(f"vaihingen {scene}", label), label


def coloured(scene):
    """Return the label with boundaries, in colours, without black pixels."""
    return pictures.lookup(isprs.PALETTE, truth(scene)[1] % 6)


def write(folder):
    """Write the two official archives; in the first, labels with boundaries have the names and sizes of the images."""
    files = {}
    for scene in SIZES:
        image = truth(scene)[0]
        files[f"top/top_mosaic_09cm_{scene}.tif"] = pictures.uncompressed(image)
        files[f"dsm/dsm_09cm_matching_{scene}.tif"] = image[..., 0]
        if scene in SCENES["train"]:
            files[f"gts_for_participants/top_mosaic_09cm_{scene}.tif"] = pictures.uncompressed(coloured(scene))
    pictures.write_zip(folder / "ISPRS_semantic_labeling_Vaihingen.zip", files)
    labels = {
        f"top_mosaic_09cm_{scene}_noBoundary.tif": pictures.lookup(isprs.PALETTE, truth(scene)[1]) for scene in SIZES
    }
    pictures.write_zip(folder / "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE.zip", labels)


def write_all_labels(folder):
    """Write the archive of labels with boundaries, which have the names of the images."""
    write(folder)
    labels = {f"top_mosaic_09cm_{scene}.tif": pictures.uncompressed(coloured(scene)) for scene in SIZES}
    pictures.write_zip(folder / "ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE.zip", labels)


def write_repacked(folder):
    """Write tiles as cut by the authors' converter."""
    for split, names in SCENES.items():
        for scene in names:
            image, label = truth(scene)
            stored = pictures.lookup(isprs.STORED, label)
            folders = (f"img_dir/{split}", f"ann_dir/{split}")
            pictures.write_files(folder / "vaihingen_new", isprs.repacked(scene, image, stored, *folders))
