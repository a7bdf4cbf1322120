"""Tiny archives with the names, folders and encodings of the official ones, for tests; the images are synthetic.

`write_all(root)` writes one folder of archives per dataset and returns {dataset: folder}, for use as `--manual_dir`.
Each module has `write(folder)` for the official layout, `write_repacked(folder)` for the CrossEarth authors' layout and
`truth`, which returns the images and train ids that both encode.
"""

from pathlib import Path

from . import casid, deepglobe_roads, loveda, massachusetts_roads, potsdam, rescuenet, vaihingen, whu_building

DATASETS = {
    "potsdam": potsdam,
    "vaihingen": vaihingen,
    "loveda": loveda,
    "whu_building": whu_building,
    "deepglobe_roads": deepglobe_roads,
    "massachusetts_roads": massachusetts_roads,
    "rescuenet": rescuenet,
    "casid": casid,
}


def write_all(root: Path) -> dict[str, Path]:
    """Write the archives of every dataset below `root`."""
    folders = {name: Path(root) / name for name in DATASETS}
    for name, folder in folders.items():
        DATASETS[name].write(folder)
    return folders
