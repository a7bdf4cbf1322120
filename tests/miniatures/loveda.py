"""LoveDA: scenes of 64 pixels in the two areas and three splits; the test split has no labels."""

from . import pictures

SIDE = 64
# Numbers are unique over splits and areas.
SCENES = {
    ("train", "rural"): ("0", "1", "2"),
    ("train", "urban"): ("1366", "1367"),
    ("val", "rural"): ("2522", "2523"),
    ("val", "urban"): ("3514",),
}
COUNTS = {"urban": {"train": 2, "val": 1}, "rural": {"train": 3, "val": 2}}


def truth(scene):
    """Return image and train ids."""
    label = pictures.labels(f"loveda {scene}", SIDE, SIDE, 7)
    return pictures.photograph(f"loveda {scene}", label), label


def files(split):
    """Return {name: pixels} of the archive of a split."""
    found = {}
    for (own, area), scenes in SCENES.items():
        for scene in scenes if own == split else ():
            image, label = truth(scene)
            root = f"{split.capitalize()}/{area.capitalize()}"
            found[f"{root}/images_png/{scene}.png"] = image
            found[f"{root}/masks_png/{scene}.png"] = pictures.lookup(range(1, 8), label)
    return found


def write(folder):
    """Write the three official archives."""
    for split in ("train", "val"):
        pictures.write_zip(folder / f"{split.capitalize()}.zip", files(split))
    pictures.write_zip(folder / "Test.zip", {"Test/Urban/images_png/5167.png": truth("5167")[0]})


def write_repacked(folder):
    """Write the authors' archive: the same layout in one zip."""
    pictures.write_zip(
        folder / "LoveDA-CrossEarth.zip", {f"LoveDA/{k}": v for s in ("train", "val") for k, v in files(s).items()}
    )
