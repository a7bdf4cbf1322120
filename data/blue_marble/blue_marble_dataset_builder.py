"""TFDS builder of Blue Marble: four climates x two seasons, and an unlabelled set for pretraining."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from crossearth_jax import benchmark

from . import blocks, rasters

WATER = benchmark.TAXONOMIES["blue_marble"].classes.index("water")
LAND_SHARE = 0.3  # least share of pixels that are not water
CLIMATE_SHARE = 0.6  # least share of pixels in the climate of the domain
STRIDES = {"train": 16, "validation": 32, "test": 32}  # pixels; evaluation tiles never overlap
UNLABELLED_STRIDE = 32


@dataclasses.dataclass
class BlueMarbleConfig(tfds.core.BuilderConfig):
    """One climate in one season; with climate None, all climates and seasons without labels."""

    climate: str | None = None
    seasons: tuple[str, ...] = ("green", "brown")


class Builder(tfds.core.GeneratorBasedBuilder):
    """Tiles of the two global pictures, split by geographic blocks (see `blocks`)."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012 (the name and form TFDS expects)
    BUILDER_CONFIGS = [  # noqa: RUF012
        *(
            BlueMarbleConfig(
                name=f"{climate}_{season}",
                description=benchmark.DOMAINS[f"blue_marble/{climate}_{season}"].description,
                climate=climate,
                seasons=(season,),
            )
            for climate in benchmark.CLIMATES
            for season in ("green", "brown")
        ),
        BlueMarbleConfig(name="unlabelled", description=benchmark.DOMAINS["blue_marble/unlabelled"].description),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "id": tfds.features.Text(doc="season, top row and left column on the grid of the season"),
            "domain": tfds.features.Text(),
            "longitude": tfds.features.Scalar(np.float32, doc="of the tile centre, degrees east"),
            "latitude": tfds.features.Scalar(np.float32, doc="of the tile centre, degrees north"),
        }
        if self._config.climate:
            features["label"] = tfds.features.Image(
                shape=(None, None, 1), encoding_format="png", doc="train ids; 255 is ignored"
            )
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # the rasters are part of the repository
        # Read before examples are generated, so that a damaged raster is reported at once.
        seasons = {name: rasters.load_season(name, rasters.DIRECTORY) for name in self._config.seasons}
        return {
            split: self._generate_examples(seasons, split, size)
            for split, (size, _) in benchmark.DOMAINS[self._domain].sizes.items()
        }

    def _generate_examples(
        self, seasons: dict[str, rasters.Season], split: str, size: int
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        stride = STRIDES[split] if self._config.climate else UNLABELLED_STRIDE
        for name, season in seasons.items():
            for tile in blocks.tiles(split, season.grid, size, stride):
                if self._wanted(season, tile, size):
                    key = f"{name}_{tile.row:04d}_{tile.column:04d}"
                    yield key, self._example(season, tile, size, key)

    def _wanted(self, season: rasters.Season, tile: blocks.Tile, size: int) -> bool:
        land = (tile.cut(season.label, size) != WATER).mean()
        if self._config.climate is None:
            return bool(land >= LAND_SHARE)
        climate = (tile.cut(season.climate, size) == rasters.CLIMATE_IDS[self._config.climate]).mean()
        return bool(land >= LAND_SHARE and climate >= CLIMATE_SHARE)

    def _example(self, season: rasters.Season, tile: blocks.Tile, size: int, key: str) -> dict[str, Any]:
        degrees = 180 / season.grid[0]
        example = {
            "image": _png(tile.cut(season.image, size)),
            "id": key,
            "domain": self._domain,
            "longitude": (tile.column + size / 2) * degrees - 180,
            "latitude": 90 - (tile.row + size / 2) * degrees,
        }
        if self._config.climate:
            example["label"] = _png(tile.cut(season.label, size))
        return example

    @property
    def _config(self) -> BlueMarbleConfig:
        return cast(BlueMarbleConfig, self.builder_config)

    @property
    def _domain(self) -> str:
        return f"{self.name}/{self._config.name}"


def _png(pixels: np.ndarray) -> io.BytesIO:
    """Encode as PNG; TFDS itself would need TensorFlow for it."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    buffer.seek(0)
    return buffer
