"""What the front door refuses before anything is prepared or compiled."""

import dataclasses

import pytest

from crossearth_jax.config import Config, DataConfig, ModelConfig, UserError
from crossearth_jax.main import check_classes

CONFIG = Config(name="a", data=DataConfig(source="blue_marble/arid_green"), model=ModelConfig(classes=5))


def test_another_number_of_classes_than_the_source_has_is_refused():
    wrong = dataclasses.replace(CONFIG, model=ModelConfig(classes=6))
    with pytest.raises(UserError, match=r"model\.classes is 6, but blue_marble/arid_green has 5 .*classes=5$"):
        check_classes(wrong)


def test_the_right_number_and_data_without_labels_pass():
    check_classes(CONFIG)
    unlabelled = DataConfig(source="blue_marble/unlabelled")
    check_classes(dataclasses.replace(CONFIG, data=unlabelled, model=ModelConfig(classes=2)))
