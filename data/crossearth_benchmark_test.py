"""Every setting of the benchmark resolves to a registered builder, a configuration, a split and a class list."""

from typing import Any

import crossearth_data  # noqa: F401  # pyright: ignore[reportMissingImports] (registers builders and collection)
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import registered

from crossearth_jax.benchmark import DOMAINS, SETTINGS, TRAININGS, training_of

ROWS = [setting for setting in SETTINGS.values() if training_of(setting.name) is not None]


@pytest.fixture(scope="module")
def references():
    collection: Any = registered.imported_dataset_collection_cls("crossearth_benchmark")()
    assert collection.info.name == "crossearth_benchmark"
    return collection.datasets["1.0.0"]


@pytest.mark.parametrize("setting", ROWS, ids=lambda setting: setting.name)
@pytest.mark.parametrize("role", ["train", "test"])
def test_row_resolves(references, tmp_path, setting, role):
    reference = references[f"{setting.name}/{role}"]
    domain = DOMAINS[setting.source if role == "train" else setting.target]
    split = reference.split_mapping[role]
    assert split == ("train" if role == "train" else domain.eval_split) and split in domain.counts
    # By the name that TFDS itself resolves: dataset/config:version.
    builder: Any = tfds.builder(reference.tfds_name(), data_dir=tmp_path)
    assert (builder.name, builder.builder_config.name) == (domain.dataset, domain.config)
    assert str(builder.version) == reference.version
    classes = domain.classes
    assert setting.classes == classes
    assert {"image", "label", "id"} <= set(builder.info.features)
    names = getattr(builder.info.features["label"], "names", None)
    assert names is None or tuple(names) == classes


def test_the_collection_holds_every_row_and_nothing_else(references):
    assert len(ROWS) == 29 and len(references) == 58
    assert {setting.source for setting in ROWS} == {training.source for training in TRAININGS.values()}
