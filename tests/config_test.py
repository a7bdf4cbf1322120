"""`from_config_dict` and `to_config_dict`: their error messages, and that no field is lost."""

import dataclasses
import json

import pytest
from ml_collections import ConfigDict

from crossearth_jax.config import (
    AugmentConfig,
    Config,
    EvaluateConfig,
    MimConfig,
    ModelConfig,
    OptimizerConfig,
    ReinsConfig,
    StyleConfig,
    TrainConfig,
    UserError,
    from_config_dict,
    to_config_dict,
)

FULL = Config(
    name="full",
    model=ModelConfig(classes=5, reins=None, mim=MimConfig(dilations=(1, 3))),
    augment=AugmentConfig(scales=(0.5, 2.0)),
    style=StyleConfig(weights="style.pth"),
    optimizer=OptimizerConfig(clip_norm=1.0),
    train=TrainConfig(frozen=((r"backbone/.*", True), (r".*", False))),
)


@pytest.mark.parametrize("config", [Config(name="default"), FULL])
def test_round_trip_also_through_json(config):
    values = to_config_dict(config)
    assert from_config_dict(values) == config
    assert from_config_dict(ConfigDict(values.to_dict())) == config
    # A run keeps its config as JSON, which has lists for tuples.
    assert from_config_dict(json.loads(values.to_json_best_effort())) == config


def test_every_field_is_in_the_config_dict():
    values = to_config_dict(FULL)
    assert set(values) == {field.name for field in dataclasses.fields(Config)}
    assert values.model.mim.dilations == (1, 3) and values.model.reins is None


def test_descriptions_of_earlier_versions_name_the_adapter_by_its_section():
    """Versions without `model.adapter` had Rein, or none if `reins` was None."""
    assert from_config_dict({"reins": {"tokens": 8}}, ModelConfig).rein == ReinsConfig(tokens=8)
    assert from_config_dict({"reins": None}, ModelConfig).rein is None
    assert from_config_dict({"adapter": "lora", "reins": {}}, ModelConfig).rein is None


def test_optional_scalars_can_be_set_but_only_to_their_type():
    values = to_config_dict(Config(name="x"))
    values.optimizer.clip_norm = 0.5
    assert from_config_dict(values).optimizer.clip_norm == 0.5
    with pytest.raises(TypeError):
        values.optimizer.clip_norm = "half"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "x", "trian": {}}, r"unknown config key 'config\.trian'; did you mean 'train'\?"),
        ({"name": "x", "data": {"zzz": 1}}, r"unknown config key 'config\.data\.zzz'; known keys: source, "),
        ({}, "config: .*missing.*'name'"),
        ({"name": 3}, r"config\.name is 3 \(int\), expected str"),
        ({"name": "x", "seed": True}, r"config\.seed is True \(bool\), expected int"),
        ({"name": "x", "seed": 1.5}, r"config\.seed is 1\.5 \(float\), expected int"),
        ({"name": "x", "seed": None}, r"config\.seed is None, expected"),
        ({"name": "x", "train": 3}, r"config\.train is 3, expected the fields of TrainConfig"),
        ({"name": "x", "augment": {"contrast": [1.0]}}, r"config\.augment\.contrast has 1 entries, expected 2"),
        ({"name": "x", "augment": {"scales": [1.0, "a"]}}, r"config\.augment\.scales\[1\] is 'a' \(str\)"),
        (
            {"name": "x", "train": {"frozen": [["a", 1]]}},
            r"config\.train\.frozen\[0\]\[1\] is 1 \(int\), expected bool",
        ),
    ],
)
def test_mistakes_are_named(values, message):
    with pytest.raises(UserError, match=message):
        from_config_dict(values)


def test_whole_numbers_become_floats_where_floats_are_meant():
    config = from_config_dict({"name": "x", "optimizer": {"power": 1}, "augment": {"contrast": [1, 2]}})
    assert (config.optimizer.power, config.augment.contrast) == (1.0, (1.0, 2.0))
    assert isinstance(config.optimizer.power, float) and isinstance(config.augment.contrast[0], float)


def test_a_part_can_be_read_alone():
    assert from_config_dict({"window": 64}, EvaluateConfig) == EvaluateConfig(window=64)


@pytest.mark.parametrize(("stored", "read"), [(True, "blocks"), (False, "none"), ("cheap", "cheap")])
def test_the_boolean_of_earlier_versions_is_read(stored, read):
    assert from_config_dict({"model": {"vit": {"remat": stored}}, "name": "old"}).model.vit.remat == read
