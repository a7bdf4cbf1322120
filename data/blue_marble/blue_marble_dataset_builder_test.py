"""The built Blue Marble dataset: counts, positions, labels, separation of splits and the rule for scored classes."""

import itertools
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from crossearth_data.blue_marble import blocks, rasters  # pyright: ignore[reportMissingImports]
from PIL import Image

from crossearth_jax.benchmark import CLIMATES, DOMAINS, IGNORE, SETTINGS, TAXONOMIES
from crossearth_jax.config import UserError
from crossearth_jax.inputs.sources import PreparedSplit
from crossearth_jax.prepare import prepare_domains

LABELLED = [f"blue_marble/{climate}_{season}" for climate in CLIMATES for season in ("green", "brown")]
DEGREES = {"green": 1 / 15, "brown": 360 / 4096}  # per pixel
COUNTS = {  # train, validation, test
    "tropical_green": (282, 98, 96),
    "tropical_brown": (90, 53, 47),
    "arid_green": (727, 177, 174),
    "arid_brown": (257, 99, 100),
    "temperate_green": (187, 39, 42),
    "temperate_brown": (62, 17, 19),
    "cold_green": (829, 170, 202),
    "cold_brown": (292, 95, 109),
}
CLASS_PERCENT = {  # of labelled pixels: water, forest, shrub_grass, cropland, bare_snow
    ("temperate_green", "train"): (6.1, 15.0, 54.3, 24.5, 0.1),
    ("temperate_green", "test"): (8.7, 17.5, 58.2, 15.4, 0.2),
    ("tropical_green", "test"): (4.8, 36.5, 44.2, 14.4, 0.0),
    ("arid_green", "test"): (1.9, 0.4, 58.7, 5.9, 33.1),
    ("cold_green", "test"): (3.9, 22.9, 59.7, 13.2, 0.3),
    ("cold_brown", "test"): (3.5, 23.6, 59.9, 12.7, 0.3),
}
SEASON_SPLITS = list(itertools.product(("green", "brown"), ("train", "test")))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepare_domains([*LABELLED, "blue_marble/unlabelled"], folder)
    return folder


@pytest.fixture(scope="module")
def examples(data_dir):
    """Return all examples as {(configuration, split): [example]}."""
    opened = {
        (DOMAINS[name].config, split): PreparedSplit(name, split, data_dir)
        for name in [*LABELLED, "blue_marble/unlabelled"]
        for split in DOMAINS[name].counts
    }
    return {key: [source[i] for i in range(len(source))] for key, source in opened.items()}


def boxes(examples):
    """Return the west, east, north and south edges of tiles in degrees from the map's north-west corner, (n, 4)."""
    edges = []
    for example in examples:
        season, row, column = example["id"].split("_")
        top, left, size = int(row), int(column), example["label"].shape[0]
        edges.append(np.array([left, left + size, top, top + size]) * DEGREES[season])
    return np.array(edges)


def gaps(first, second):
    """Return the gap in degrees, the larger of both axes, between all pairs of boxes; negative if they overlap."""

    def along(axis, shift):
        start, end = first[:, None, axis] + shift, first[:, None, axis + 1] + shift
        return np.maximum(start - second[None, :, axis + 1], second[None, :, axis] - end)

    east_west = np.minimum.reduce([along(0, shift) for shift in (-360, 0, 360)])  # across 180 degrees too
    return np.maximum(east_west, along(2, 0))


def class_percent(examples):
    histogram = np.bincount(np.concatenate([example["label"].ravel() for example in examples]), minlength=256)
    return 100 * histogram[:5] / histogram[:IGNORE].sum()


def test_counts(examples):
    found = {config: tuple(len(examples[config, s]) for s in ("train", "validation", "test")) for config in COUNTS}
    assert found == COUNTS
    assert len(examples["unlabelled", "train"]) == 2239
    for (config, split), group in examples.items():
        assert DOMAINS[f"blue_marble/{config}"].counts[split] == len(group)
        assert {example["label"].shape for example in group} == {DOMAINS[f"blue_marble/{config}"].sizes[split]}
        assert {example["domain"] for example in group} == {f"blue_marble/{config}"}
        assert len({example["id"] for example in group}) == len(group)


def test_splits_do_not_touch_in_any_climate_or_season(examples):
    place = {split: [] for split in ("train", "validation", "test")}
    for (_, split), group in examples.items():
        place[split].append(boxes(group))
    place = {split: np.concatenate(group) for split, group in place.items()}
    for first, second in itertools.combinations(place, 2):
        # At least six pixels are left out between neighbouring blocks: 7 / 15 degree on the green grid.
        assert gaps(place[first], place[second]).min() > 0.46


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_tiles_do_not_overlap(examples, split):
    for config in COUNTS:
        place = boxes(examples[config, split])
        apart = gaps(place, place)
        np.fill_diagonal(apart, 0)
        assert apart.min() > -1e-9


def test_class_shares(examples):
    for key, expected in CLASS_PERCENT.items():
        np.testing.assert_allclose(class_percent(examples[key]), expected, atol=0.05)  # printed to one digit


def test_scored_classes_follow_the_stated_rule(examples):
    names = TAXONOMIES["blue_marble"].classes
    shares = {
        climate: [class_percent(examples[f"{climate}_{season}", split]) for season, split in SEASON_SPLITS]
        for climate in CLIMATES
    }
    useful = {climate: np.min(columns, axis=0) >= 1 for climate, columns in shares.items()}
    for setting in (row for row in SETTINGS.values() if row.source.startswith("blue_marble/")):
        climates = [name.split("/")[1].split("_")[0] for name in (setting.source, setting.target)]
        both = useful[climates[0]] & useful[climates[1]]
        assert setting.classes == tuple(itertools.compress(names, both)), setting.name
    # No class is near the threshold of 1 %, so its exact value does not matter.
    every = np.concatenate([np.min(columns, axis=0) for columns in shares.values()])
    assert every[every >= 1].min() > 1.85 and every[every < 1].max() < 0.65


@pytest.mark.parametrize("config", ["temperate_green", "cold_brown"])
def test_pixels_come_from_the_place_the_tile_names(examples, config):
    """Compare sampled pixels with the original rasters at the same longitude and latitude."""
    climate, season = config.split("_")
    image = np.asarray(Image.open(rasters.DIRECTORY / f"{season}_season.jpg"))
    igbp = read_png("igbp_2019.png")
    koppen = read_png("koppen_main_groups.png")
    train_id = {0: 0, **dict.fromkeys(range(1, 6), 1), **dict.fromkeys(range(6, 11), 2), 11: IGNORE}
    train_id |= {12: 3, 13: IGNORE, 14: 3, 15: 4, 16: 4}
    rng = np.random.default_rng(0)
    in_climate = []
    for example in examples[config, "test"]:
        _, top, left = example["id"].split("_")
        for row, column in rng.integers(0, 32, (8, 2)):
            y, x = int(top) + row, int(left) + column
            np.testing.assert_array_equal(example["image"][row, column], image[y, x])
            latitude, longitude = 90 - (y + 0.5) * DEGREES[season], (x + 0.5) * DEGREES[season] - 180
            # Rounded: every third centre of the green grid lies on an edge, where the south-eastern cell is used.
            cell = tuple(int(round(angle / 0.05, 6)) for angle in (90 - latitude, longitude + 180))
            assert example["label"][row, column] == train_id[int(igbp[cell])]
            in_climate.append(koppen[cell] == rasters.CLIMATE_IDS[climate])
    assert np.mean(in_climate) > 0.6


def read_png(name):
    Image.MAX_IMAGE_PIXELS, limit = None, Image.MAX_IMAGE_PIXELS
    try:
        return np.asarray(Image.open(rasters.DIRECTORY / name))
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@pytest.mark.parametrize("season", ["green", "brown"])
@pytest.mark.parametrize(
    ("longitude", "latitude", "label", "climate"),
    [
        (-62, -5, "forest", "tropical"),  # Amazon
        (10, 24, "bare_snow", "arid"),  # Sahara
        (-93.5, 42, "cropland", "cold"),  # Iowa
        (45, 60, "forest", "cold"),  # northern Russia
        (-140, 0, "water", None),  # Pacific
    ],
)
def test_known_places(season, longitude, latitude, label, climate):
    world = rasters.load_season(season, rasters.DIRECTORY)
    row, column = int((90 - latitude) / DEGREES[season]), int((longitude + 180) / DEGREES[season])
    around = np.s_[row - 8 : row + 9, column - 8 : column + 9]
    assert (world.label[around] == TAXONOMIES["blue_marble"].classes.index(label)).mean() > 0.6
    assert (world.climate[around] == rasters.CLIMATE_IDS.get(climate, 0)).mean() > 0.9


def test_tile_centres_are_stored(data_dir):
    builder: Any = tfds.builder_from_directory(data_dir / "blue_marble/cold_brown/1.0.0")
    skip = {name: tfds.decode.SkipDecoding() for name in ("image", "label")}
    for record in builder.as_data_source("validation", decoders=skip):
        _, row, column = record["id"].decode().split("_")
        np.testing.assert_allclose(record["longitude"], (int(column) + 16) * DEGREES["brown"] - 180, atol=1e-4)
        np.testing.assert_allclose(record["latitude"], 90 - (int(row) + 16) * DEGREES["brown"], atol=1e-4)


def test_blocks_by_hand():
    # Block row 0 begins ... phases 2, 3, 4, 0, 1; each row south shifts the pattern by two.
    assert [blocks.split_of_block(0, c) for c in range(5)] == ["train", "validation", "test", "train", "train"]
    assert [blocks.split_of_block(1, c) for c in range(5)] == ["test", "train", "train", "train", "validation"]
    # 9 degrees are 135 pixels of the green grid: four tiles of 32; 102.4 of the brown: three.
    assert list(blocks._starts(1, 15, 32, 32)) == [135, 167, 199, 231]
    assert list(blocks._starts(1, 2048 / 180, 32, 32)) == [103, 135, 167]
    assert list(blocks._starts(5, 2048 / 180, 32, 32)) == [512, 544, 576]
    assert list(blocks._starts(0, 15, 64, 16)) == [0, 16, 32, 48, 64]


@pytest.mark.parametrize("name", [*LABELLED, "blue_marble/unlabelled"])
def test_every_domain_resolves_to_its_builder(data_dir, name):
    builder: Any = tfds.builder(name, data_dir=data_dir)
    assert (builder.name, builder.builder_config.name) == (DOMAINS[name].dataset, DOMAINS[name].config)
    assert builder.builder_config.description == DOMAINS[name].description
    assert "NASA" in builder.info.citation and "Land cover in four climates" in builder.info.description


@pytest.mark.parametrize("name", list(rasters.SHA256))
def test_damaged_rasters_are_named(tmp_path, name):
    season = "brown" if name.startswith("brown") else "green"
    for other in rasters.SHA256:
        (tmp_path / other).symlink_to(rasters.DIRECTORY / other)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=rf"{name} is missing; .*git checkout"):
        rasters.load_season(season, tmp_path)
    whole = (rasters.DIRECTORY / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:-1000])
    with pytest.raises(UserError, match=rf"{name} \({len(whole) - 1000} bytes\).*truncated or altered; restore"):
        rasters.load_season(season, tmp_path)


def test_a_damaged_raster_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(rasters, "DIRECTORY", tmp_path)
    with pytest.raises(UserError, match=r"green_season\.jpg is missing"):
        prepare_domains(["blue_marble/arid_green"], tmp_path / "prepared")
    assert not list((tmp_path / "prepared").rglob("1.0.0*"))
