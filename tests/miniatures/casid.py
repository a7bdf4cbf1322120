"""CASID: tiles of 64 pixels in four climates; also whole scenes, 1100 pixels wide, which have to be cut."""

from . import pictures

FOLDERS = {"subms": "SubMs", "temms": "TemMs", "troms": "TroMs", "trorf": "TroRf"}
PALETTE = ((0, 0, 0), (255, 255, 0), (85, 255, 0), (255, 0, 0), (0, 112, 255))
SIDE = 64
SCENE = (1010, 1100)  # height, width
NAMES = {"train": ("12_0_0", "12_0_1", "7_4_4"), "test": ("3_0_0", "3_1_0")}
COUNTS = {"train": 3, "test": 2}


def truth(climate, split, name, size=(SIDE, SIDE)):
    """Return image and train ids."""
    key = f"casid {climate} {split} {name}"
    label = pictures.labels(key, *size, 5, ignored=False)
    return pictures.photograph(key, label), label


def write(folder, first=0, climates=tuple(FOLDERS)):
    """Write the authors' archive of tiles, with classes numbered from `first`; TroMs has another test label folder."""
    files = {}
    for climate in climates:
        for split, names in NAMES.items():
            labels = "label_id" if (climate, split) == ("troms", "test") else "label"
            root = f"CASID/{FOLDERS[climate]}/all_{split}"
            for name in names:
                image, label = truth(climate, split, name)
                files[f"{root}/image/{name}.png"] = image
                files[f"{root}/{labels}/{name}-label.png"] = label + first
    pictures.write_zip(folder / "CAISD.zip", files)


write_repacked = write


def write_both(folder, climate="troms"):
    """Write labels both in colours and as numbers from 1."""
    root = folder / "CASID" / FOLDERS[climate]
    for split, names in NAMES.items():
        for name in names:
            image, label = truth(climate, split, name)
            files = {f"image/{name}.png": image, f"label/{name}-label.png": pictures.lookup(PALETTE, label)}
            pictures.write_files(root / f"all_{split}", {**files, f"label_id/{name}-label.png": label + 1})


def write_scenes(folder, climate="subms"):
    """Write whole scenes, one per split."""
    for split, name in (("train", "12"), ("test", "3")):
        image, label = truth(climate, split, name, SCENE)
        files = {f"{name}.png": image, f"{name}-label.png": label}
        pictures.write_files(folder / "CASID" / FOLDERS[climate] / split, files)
