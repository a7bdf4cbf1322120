"""Entries of results.json: scores worked out by hand, and documentation of every field."""

import re
from pathlib import Path

import numpy as np
import pytest

from crossearth_jax import benchmark
from crossearth_jax.inference import metrics, results

PAGE = (Path(__file__).parents[2] / "docs" / "results.md").read_text("utf-8")
SETTING = benchmark.SETTINGS["temperate_green2temperate_brown"]
NAMES = benchmark.DOMAINS[SETTING.target].classes


def documented(heading):
    """The first cells of the rows of the table after the given line."""
    table = PAGE.split(heading)[1].split("\n\n")[1]
    return [re.findall(r"`(\w+)`", line.split("|")[1]) for line in table.splitlines()[2:]]


@pytest.fixture
def confusion():
    """Water: 6 of 10 pixels correct, 4 predicted as forest. Forest: 5 of 5. Shrub: its only pixel as cropland."""
    names = NAMES
    matrix = np.zeros((len(names), len(names)), np.int64)
    water, forest, shrub, cropland = (names.index(name) for name in ("water", "forest", "shrub_grass", "cropland"))
    matrix[water, water], matrix[water, forest], matrix[forest, forest], matrix[shrub, cropland] = 6, 4, 5, 1
    return matrix


def test_scores_counted_by_hand(confusion):
    entry = results.row(SETTING, NAMES, confusion, 7)
    iou = {"water": 60.0, "forest": 55.5556, "shrub_grass": 0.0, "cropland": 0.0}  # 6 of 10, 5 of 9, 0 of 1, 0 of 1
    assert entry["iou"] == {name: iou.get(name) for name in SETTING.classes}
    assert entry["miou"] == pytest.approx((60 + 500 / 9) / 4, abs=1e-4)
    assert entry["accuracy"] == pytest.approx(100 * 11 / 16, abs=1e-4)
    assert (entry["pixels"], entry["checkpoint_step"], entry["schema_version"]) == (16, 7, 1)


def test_calibration_errors_are_percent(confusion):
    counts = np.zeros((2, 3, metrics.BINS), np.int64)
    counts[0, :, 14] = 16, 11, 15.2 / metrics.UNIT  # 11 of 16 correct, mean confidence 0.95
    counts[1, :, 10] = 16, 11, 11.2 / metrics.UNIT
    entry = results.row(SETTING, NAMES, confusion, 7, counts, 2.345678)
    assert (entry["ece"], entry["ece_calibrated"], entry["temperature"]) == (26.25, 1.25, 2.3457)
    alone = results.row(SETTING, NAMES, confusion, 7, counts[:1])
    assert (alone["ece"], alone["ece_calibrated"], alone["temperature"]) == (26.25, None, None)


def test_the_page_describes_every_field(confusion):
    entry = results.row(SETTING, NAMES, confusion, None)
    assert sorted(entry) == sorted(name for names in documented("Every entry holds:") for name in names)
    more = {name for names in documented("Some entries hold more:") for name in names}
    roads = next(setting for setting in benchmark.SETTINGS.values() if setting.object)
    of_object = results.row(roads, roads.classes, np.eye(2, dtype=np.int64), None).keys() - entry.keys()
    assert of_object == {"object", "object_iou"} <= more
    assert {"protocol", "style_distance", "baselines", "checkpoint", "kind", "images", "images_of_benchmark"} <= more
