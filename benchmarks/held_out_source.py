"""Train an experiment on Blue Marble and score it on a held-out part of its source, to choose recipes without targets.

    python -m benchmarks.held_out_source --part=climates --scratch=FOLDER
    python -m benchmarks.held_out_source --part=asia --scratch=FOLDER --config=configs/blue_marble.py --config.seed=1

Labels of the held-out part are ignored in training, and only labels inside it are scored. `climates` holds out the
pixels of temperate train tiles that lie in another climate (up to 40 % of a tile); the tropical, arid and cold ones are
scored, without water. The other parts hold out a continent. The colour-only classifier is trained and scored on the
same pixels. Prints one JSON object.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging
from crossearth_data.blue_marble import blocks, rasters  # pyright: ignore[reportMissingImports]
from crossearth_data.blue_marble.blue_marble_dataset_builder import (  # pyright: ignore[reportMissingImports]
    STRIDES,
    Builder,
)
from jaxtyping import Bool, Int
from ml_collections import config_flags

from crossearth_jax.analysis import baselines
from crossearth_jax.benchmark import DOMAINS, IGNORE, TAXONOMIES
from crossearth_jax.config import Config, from_config_dict
from crossearth_jax.inference import metrics
from crossearth_jax.inference.domains import score_domain
from crossearth_jax.inference.segmentor import load
from crossearth_jax.training.loop import train

SOURCE = "blue_marble/temperate_green"
CLASSES = TAXONOMIES["blue_marble"].classes
LEAST_SHARE = 0.01  # least share of the labelled pixels of a class that is scored, as in the benchmark
CLIMATES = ("tropical", "arid", "cold")
LONGITUDES = {"americas": (-180, -30), "europe_africa": (-30, 60), "asia": (60, 180)}  # degrees east
PARTS = ("climates", *LONGITUDES)

type Mask = Bool[np.ndarray, "h w"]  # on the grid of the season


def main(argv: Sequence[str]) -> None:
    """Train without the part and print the scores of the model and of the colour-only classifier on it."""
    del argv
    config = from_config_dict(FLAGS.config, Config)
    scratch = Path(FLAGS.scratch)
    scratch.mkdir(parents=True)
    hidden, scored = masks(FLAGS.part, rasters.load_season("green", rasters.DIRECTORY))
    folders = {name: prepare(scratch / "data" / name, hidden, mask) for name, mask in scored.items()}
    data_dir = next(iter(folders.values()))  # all have the same train split
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, source=SOURCE, data_dir=data_dir))
    train(config, scratch / "run")
    windows = load(scratch / "run").sliding_windows(batch_size=config.evaluate.batch_size)
    classify = baselines.fit_colour(*baselines.sampled_pixels(SOURCE, "train", data_dir))
    result: dict[str, Any] = {
        "part": FLAGS.part,
        "config": config.name,
        "seed": config.seed,
        "steps": config.train.steps,
    }
    for name, folder in folders.items():
        ours = score_domain(windows, DOMAINS[SOURCE], "validation", folder).confusion
        colour = np.zeros_like(ours)
        for pixels, labels in baselines.labelled_pixels(SOURCE, "validation", folder):
            colour += metrics.confusion(labels, classify(pixels), len(CLASSES))
        result[name] = {"model": score(ours, FLAGS.part), "colour": score(colour, FLAGS.part)}
    result["mean"] = {
        who: float(np.mean([result[name][who]["miou"] for name in folders])) for who in ("model", "colour")
    }
    print(json.dumps(result))


def masks(part: str, season: rasters.Season) -> tuple[Mask, dict[str, Mask]]:
    """Return the pixels that are held out of training, and the pixels that are scored, by name."""
    height, width = season.grid
    if part == "climates":
        scored = {name: season.climate == rasters.CLIMATE_IDS[name] for name in CLIMATES}
        home = np.isin(season.climate, (rasters.CLIMATE_IDS["temperate"], 0))  # 0: the sea has no climate
        return ~home, scored
    west, east = LONGITUDES[part]
    longitude = (np.arange(width) + 0.5) * 360 / width - 180
    mask = np.broadcast_to((longitude >= west) & (longitude < east), (height, width))
    return mask, {part: mask}


def prepare(folder: Path, hidden: Mask, scored: Mask) -> str:
    """Prepare the source from its train tiles: `train` without labels in `hidden`, `validation` with those in `scored`.

    Returns:
      The folder of the prepared data.
    """

    class HeldOut(Builder, skip_registration=True):  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]
        """The train tiles of the source, and tiles of the evaluation size inside them as validation split."""

        name = "blue_marble"

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            del dl_manager
            season = rasters.load_season("green", rasters.DIRECTORY)
            seen, unseen = (
                dataclasses.replace(season, label=np.where(ignored, IGNORE, season.label).astype(np.uint8))
                for ignored in (hidden, ~scored)
            )
            sizes = {name: size for name, (size, _) in DOMAINS[SOURCE].sizes.items()}
            tiles = [
                tile
                for tile in blocks.tiles("train", season.grid, sizes["train"], STRIDES["train"])
                if self._wanted(season, tile, sizes["train"])
            ]
            pieces = quarters(tiles, season.grid, sizes["train"], sizes["validation"])
            return {
                "train": self._labelled(seen, tiles, sizes["train"]),
                "validation": self._labelled(unseen, pieces, sizes["validation"]),
            }

        def _labelled(self, season: rasters.Season, tiles: Sequence[blocks.Tile], size: int) -> Iterator[Any]:
            for tile in tiles:
                if (tile.cut(season.label, size) != IGNORE).any():
                    key = f"green_{tile.row:04d}_{tile.column:04d}"
                    yield key, self._example(season, tile, size, key)

    HeldOut(config=SOURCE.split("/")[1], data_dir=folder, file_format="array_record").download_and_prepare()
    return str(folder)


def quarters(tiles: Sequence[blocks.Tile], grid: tuple[int, int], size: int, part: int) -> list[blocks.Tile]:
    """Return tiles of `part` pixels, without overlap, each of which lies inside one of the (overlapping) `tiles`."""
    offsets = range(0, size - part + 1, STRIDES["train"])
    inside = {(tile.row + down, tile.column + right) for tile in tiles for down in offsets for right in offsets}
    return [tile for tile in blocks.tiles("train", grid, part, part) if (tile.row, tile.column) in inside]


def score(confusion: Int[np.ndarray, "k k"], part: str) -> dict[str, Any]:
    """Return mIoU and class IoU, in percent, of the classes with enough pixels.

    Water is not scored in `climates`: the sea has no climate, so the remaining water pixels are mostly coasts where the
    rasters of climate and land cover disagree.
    """
    share = confusion.sum(axis=1) / confusion.sum()
    classes = [i for i, name in enumerate(CLASSES) if share[i] >= LEAST_SHARE and (name, part) != ("water", "climates")]
    iou = metrics.iou(confusion) * 100
    return {"miou": metrics.mean(iou, classes), "iou": {CLASSES[i]: round(float(iou[i]), 1) for i in classes}}


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    logging.set_verbosity(logging.INFO)
    FLAGS = flags.FLAGS
    flags.DEFINE_enum("part", "climates", PARTS, "the part of the source that is held out")
    flags.DEFINE_string("scratch", None, "folder for data and run; must not exist", required=True)
    config_flags.DEFINE_config_file("config", "configs/blue_marble.py")
    app.run(main, sys.argv)
