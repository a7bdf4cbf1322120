"""Facts of the CrossEarth benchmark compared with an independent transcription, and TFDS's rules for names."""

import json
from collections import Counter
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from crossearth_jax import benchmark
from crossearth_jax.benchmark import DOMAINS, OTHER_WEIGHTS, SETTINGS, TRAININGS, used_splits

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "benchmark.json").read_text())
NAMES = {  # of a dataset in the golden file -> domain
    "potsdam_rgb": "potsdam/rgb",
    "potsdam_rgb_5class": "potsdam/rgb_5class",
    "potsdam_irrg": "potsdam/irrg",
    "potsdam_irrg_5class": "potsdam/irrg_5class",
    "vaihingen_irrg": "vaihingen/irrg",
    "loveda_urban": "loveda/urban",
    "loveda_rural": "loveda/rural",
    "whu_aerial": "whu_building/aerial",
    "whu_satellite2": "whu_building/satellite_ii",
    "deepglobe_road": "deepglobe_roads/roads",
    "massachusetts_road": "massachusetts_roads/roads",
    "rescuenet_5class": "rescuenet/rescuenet_5class",
    "casid_subms": "casid/subms",
    "casid_temms": "casid/temms",
    "casid_troms": "casid/troms",
    "casid_trorf": "casid/trorf",
}


# RescueNet's version 2 has one test photograph more than the authors' table says.
TABLE_SAYS = {"rescuenet/rescuenet_5class": (450, 449)}


@pytest.mark.parametrize("name", GOLDEN["datasets"])
def test_domain(name):
    facts, domain = GOLDEN["datasets"][name], DOMAINS[NAMES[name]]
    if domain.name in TABLE_SAYS:
        assert (domain.counts["test"], facts["splits"]["test"]) == TABLE_SAYS[domain.name]
    else:
        assert domain.counts == {split: n for split, n in facts["splits"].items() if "unlabelled" not in split}
    assert domain.eval_split == (facts["eval_split"] or "").split(" ")[0]
    assert domain.gsd == facts.get("gsd_m")
    if "image_size" in facts and name != "rescuenet_5class":  # whose photographs have more than one size
        assert set(domain.sizes.values()) == {tuple(reversed(facts["image_size"]))}
    assert domain.classes == tuple(facts["classes"])
    assert domain.palette == tuple(map(tuple, facts["palette"]))
    if "eval_resize" in facts:
        assert domain.resize is not None
        assert domain.resize.box == tuple(reversed(facts["eval_resize"]["size"]))
        assert domain.resize.keep_ratio == facts["eval_resize"]["keep_ratio"]
    assert (domain.resize is None) == (domain.eval_split == "")


@pytest.mark.parametrize("row", GOLDEN["settings"], ids=lambda row: row["name"])
def test_setting(row):
    setting, training = SETTINGS[row["name"]], benchmark.training_of(row["name"])
    assert setting.source == NAMES[row["source"]] and [setting.target] == [NAMES[name] for name in row["targets"]]
    assert list(setting.gap) == row["gap"] and setting.cross_domain == row["cross_domain"]
    assert len(setting.classes) == row["num_classes"]
    assert training is not None and training.crop == row["crop_size"] == row["test_window"]
    assert DOMAINS[setting.source].counts["train"] == row["train_images"]
    images = DOMAINS[setting.target].counts[DOMAINS[setting.target].eval_split]
    assert (images, row["test_images"]) == TABLE_SAYS.get(setting.target, (images, images))
    assert (setting.object is None) == (row["headline_metric"] == "miou")
    published = row["published_weights"]
    expected = published if isinstance(published, list) else [published]
    assert [training.weights, *(OTHER_WEIGHTS if setting.name == "D2M" else ())] == expected


def test_counts_of_rows():
    rows = [SETTINGS[row["name"]] for row in GOLDEN["settings"]]
    assert len(rows) == len([name for name in SETTINGS if not SETTINGS[name].source.startswith("blue_marble/")]) == 29
    assert Counter(row.gap for row in rows) == {
        ("region",): 6,
        ("spectral_band",): 2,
        ("region", "spectral_band"): 3,
        ("region", "platform"): 2,
        ("region", "climate"): 12,
        (): 4,
    }
    assert len(TRAININGS) == len({training.source for training in TRAININGS.values()}) == 14
    assert {training.source for training in TRAININGS.values()} == {row.source for row in rows}


def test_two_class_settings_name_their_object():
    objects = {row.name: row.object for row in SETTINGS.values() if row.object}
    assert objects == {"D2M": "road", "A2S": "building", "S2A": "building"}
    assert all(SETTINGS[name].classes == ("background", what) for name, what in objects.items())


def test_no_published_number_is_without_source():
    published = [row.published for row in SETTINGS.values() if row.published is not None]
    assert all(number.source and number.confidence for number in published)
    (row,) = benchmark.OPEN_ROWS
    assert "32" in row.name and row.reason


def test_splits_that_some_setting_reads():
    assert used_splits("whu_building/aerial") == ("train", "val")
    assert used_splits("massachusetts_roads/roads") == ("test",)
    assert used_splits("deepglobe_roads/roads") == ("train",)
    assert used_splits("potsdam/rgb") == ("train", "val")
    assert used_splits("potsdam/rgb_5class") == ("train",)


@pytest.mark.parametrize("name", NAMES.values())
def test_names_are_valid_for_tfds(name):
    domain = DOMAINS[name]
    parsed, options = tfds.core.naming.parse_builder_name_kwargs(name)
    assert (str(parsed), options) == (domain.dataset, {"config": domain.config})
    info = tfds.core.naming.FilenameInfo(
        dataset_name=domain.dataset, split=domain.eval_split or "train", filetype_suffix="array_record",
        shard_index=0, num_shards=1,
    )  # fmt: skip
    assert tfds.core.naming.FilenameInfo.from_str(str(info)).dataset_name == domain.dataset


def test_training_of_a_setting_and_of_a_name():
    assert benchmark.training_of("V2P(r)") is TRAININGS["vaihingen_irrg"]
    assert benchmark.training_of("casid_temms") is TRAININGS["casid_temms"]
    assert benchmark.training_of("temperate_green2arid_green") is None
    assert benchmark.training_of("no_such_name") is None
