"""Numbers that are measured before training, against hand-computed values."""

import dataclasses

import numpy as np
import pytest

from crossearth_jax.benchmark import DOMAINS, IGNORE
from crossearth_jax.config import DataConfig, UserError
from crossearth_jax.training import measure
from crossearth_jax.training.measure import class_pixels, inverse_frequency, measured

DOMAIN = DOMAINS["blue_marble/temperate_green"]


class Split:
    """Two images of two pixels each; the last pixel has no label."""

    def __init__(self, *_):
        self.examples = [
            {"image": np.array([[[10, 0, 7], [30, 0, 7]]], np.uint8), "label": np.array([[0, 1]], np.uint8)},
            {"image": np.array([[[20, 0, 7], [99, 9, 9]]], np.uint8), "label": np.array([[1, IGNORE]], np.uint8)},
        ]

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.examples[index]


def test_inverse_frequency_by_hand():
    # 120 pixels of 3 classes that occur: a class of 40 pixels has weight 1. The limits are 0.1 and 10.
    assert inverse_frequency(np.array([100, 16, 0, 4])) == (0.4, 2.5, 1.0, 10.0)
    assert inverse_frequency(np.array([10_000, 1])) == (0.5, 10.0)
    assert inverse_frequency(np.array([5])) == (1.0,)
    with pytest.raises(UserError, match="inverse_frequency needs labels"):
        inverse_frequency(np.zeros(3, int))


def test_pixels_are_counted_unless_the_facts_state_them(monkeypatch):
    monkeypatch.setattr(measure, "PreparedSplit", Split)
    assert class_pixels(DOMAIN, DataConfig()).tolist() == [1, 2, 0, 0, 0]
    stated = dataclasses.replace(DOMAIN, pixels={"train": (5, 4, 3, 2, 1)})
    assert class_pixels(stated, DataConfig()).tolist() == [5, 4, 3, 2, 1]


def test_colours_of_labelled_pixels(monkeypatch):
    monkeypatch.setattr(measure, "PreparedSplit", Split)
    mean, deviation = measure.pixel_statistics([DOMAIN, DOMAIN], DataConfig())
    assert mean == (20.0, 0.0, 7.0)
    assert deviation == (round(float(np.std([10, 30, 20])), 1), 1.0, 1.0)  # at least 1, since images are divided by it


def test_only_what_is_left_to_the_data_is_replaced(tiny_config, monkeypatch):
    assert measured(tiny_config) is tiny_config
    monkeypatch.setattr(measure, "PreparedSplit", Split)
    vit = dataclasses.replace(tiny_config.model.vit, pixel_statistics="source")
    config = dataclasses.replace(
        tiny_config,
        model=dataclasses.replace(tiny_config.model, vit=vit),
        loss=dataclasses.replace(tiny_config.loss, class_weights="inverse_frequency"),
    )
    found = measured(config)
    assert found.model.vit.pixel_statistics == ((20.0, 0.0, 7.0), (8.2, 1.0, 1.0))
    assert found.loss.class_weights == (1.5, 0.75, 1.0, 1.0, 1.0)
    assert measured(found) is found
