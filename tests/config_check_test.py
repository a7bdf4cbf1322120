"""Inconsistent configurations are refused before anything is prepared or compiled; all others pass."""

import dataclasses
import functools
import logging
import operator
import re

import jax
import numpy as np
import pytest

from configs import blue_marble, crossearth
from crossearth_jax import benchmark, config_check
from crossearth_jax.config import (
    Config,
    DataConfig,
    HeadConfig,
    MimConfig,
    MimTaskConfig,
    ModelConfig,
    OptimizerConfig,
    StyleConfig,
    UserError,
    from_config_dict,
    to_config_dict,
)
from crossearth_jax.config_check import check_config
from crossearth_jax.training.optimizer import schedule

# All optional sections are present, so that every field can be set.
CONFIG = Config(
    name="a",
    data=DataConfig(source="blue_marble/arid_green"),
    model=ModelConfig(classes=5, head=HeadConfig(), mim=MimConfig()),
    style=StyleConfig(groups=1),
    mim=MimTaskConfig(),
    optimizer=OptimizerConfig(clip_norm=1.0, ema=0.9),
)


def changed(fields):
    """Return CONFIG with other values for the given dotted names."""
    values = to_config_dict(CONFIG).to_dict()
    for name, value in fields.items():
        *sections, field = name.split(".")
        functools.reduce(operator.getitem, sections, values)[field] = value
    return from_config_dict(values)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": -1}, "seed is -1, expected 0 to 4294967295"),
        ({"data.batch_size": 0}, "data.batch_size is 0, expected 1 or more"),
        ({"data.workers": -1}, "data.workers is -1, expected 0 or more"),
        ({"data.timeout": 0}, "data.timeout is 0.0, expected more than 0"),
        ({"model.vit.depth": 0}, "model.vit.depth is 0, expected 1 or more"),
        ({"model.reins.tokens": 0}, "model.reins.tokens is 0, expected 1 or more"),
        ({"augment.scales": (1.0, 0.0)}, "augment.scales is 0.0, expected more than 0"),
        ({"augment.contrast": (-0.5, 1.5)}, "augment.contrast is -0.5, expected 0 or more"),
        ({"augment.max_class_share": 0.5}, "augment.max_class_share is 0.5, expected more than 0.5 and at most 1"),
        ({"style.probability": 1.5}, "style.probability is 1.5, expected 0 to 1"),
        ({"style.alpha": -0.1}, "style.alpha is -0.1, expected 0 to 1"),
        ({"style.mask_ratio": 70.0}, "style.mask_ratio is 70.0, expected 0 to 1"),
        ({"mim.mask_ratio": float("nan")}, "mim.mask_ratio is nan, expected 0 to 1"),
        ({"mim.block_size": 0}, "mim.block_size is 0, expected 1 or more"),
        ({"loss.importance": 75.0}, "loss.importance is 75.0, expected 0 to 1"),
        ({"loss.oversample": 0.5}, "loss.oversample is 0.5, expected 1 or more"),
        ({"loss.dice_weight": -5.0}, "loss.dice_weight is -5.0, expected 0 or more"),
        ({"optimizer.learning_rate": -1e-4}, "optimizer.learning_rate is -0.0001, expected more than 0"),
        ({"optimizer.ema": 1.0}, "optimizer.ema is 1.0, expected 0 or more and less than 1"),
        ({"optimizer.clip_norm": 0.0}, "optimizer.clip_norm is 0.0, expected more than 0"),
        ({"optimizer.accumulate": 0}, "optimizer.accumulate is 0, expected 1 or more"),
        ({"train.steps": 0}, "train.steps is 0, expected 1 or more"),
        ({"train.log_every": 0}, "train.log_every is 0, expected 1 or more"),
        ({"train.checkpoint_every": 0}, "train.checkpoint_every is 0, expected 1 or more"),
        ({"evaluate.stride": 0}, "evaluate.stride is 0, expected 1 or more"),
        ({"evaluate.every": 0}, "evaluate.every is 0, expected 1 or more"),
        ({"mesh.fsdp": 0}, "mesh.fsdp is 0, expected 1 or more, or -1"),
        ({"loss": None, "mim": None}, "the config has no task"),
        ({"model.head": None}, "loss (segmentation) needs model.head, which is None"),
        ({"model.mim": None}, "mim (masked image modelling) needs model.mim, which is None"),
        ({"model.classes": 6}, "model.classes is 6, but blue_marble/arid_green has 5 classes"),
        ({"model.vit.heads": 7}, "model.vit.width is 1024, expected a multiple of model.vit.heads = 7"),
        (
            {"model.vit.image_size": 500},
            "model.vit.image_size is 500, expected a multiple of model.vit.patch_size = 16",
        ),
        ({"model.head.groups": 3}, "model.head.width is 256, expected a multiple of model.head.groups = 3"),
        ({"model.vit.feature_blocks": (7, 11, 15, 22)}, "expected increasing numbers that end with the last block, 23"),
        ({"model.vit.feature_blocks": (11, 15, 23)}, "names 3 blocks, expected one for each of the 4 levels"),
        ({"model.vit.patch_size": 14}, "model.vit.image_size is 512, expected a multiple of model.vit.patch_size = 14"),
        (
            {"model.vit.patch_size": 14, "model.vit.image_size": 518},
            "augment.crop_size is 512, expected a multiple of model.vit.patch_size = 14, such as 504",
        ),
        (
            {"model.vit.position": "sine"},
            "model.vit.position is 'sine', expected one of table, antialiased_table, rope",
        ),
        (
            {"model.vit.position": "rope", "model.vit.heads": 512, "model.head.heads": 8},
            "model.vit.width / model.vit.heads is 2, expected a multiple of 4",
        ),
        ({"model.vit.registers": -1}, "model.vit.registers is -1, expected 0 or more"),
        ({"augment.crop_size": 500}, "augment.crop_size is 500, expected a multiple of model.vit.patch_size = 16"),
        ({"evaluate.window": 500}, "evaluate.window is 500, expected a multiple of model.vit.patch_size = 16"),
        ({"evaluate.stride": 513}, "evaluate.stride is 513, expected at most evaluate.window = 512"),
        ({"style.block_size": 600}, "style.block_size is 600 pixels, expected at most 512"),
        ({"style.cell_size": 600}, "style.cell_size is 600 pixels, expected at most 512"),
        ({"style.detail": "high"}, "style.detail is 'high', expected one of network, low, scaled"),
        ({"style.draw_scale": 0.5}, "style.draw_scale is 0.5, but style.detail=network keeps the size of the images"),
        ({"style.detail": "low", "style.draw_scale": 0.0}, "style.draw_scale is 0.0, expected more than 0"),
        ({"style.detail": "scaled", "style.draw_scale": 0.5}, "style.draw_scale is 0.5, expected 1 or more"),
        ({"augment.crop_size": 2048}, "model.mim.token_size is 1024, expected at least augment.crop_size = 2048"),
        ({"augment.saturation": (1.5, 0.5)}, "augment.saturation is (1.5, 0.5), expected the smaller factor first"),
        ({"optimizer.horizon": 29_999}, "optimizer.horizon is 29999, less than train.steps = 30000: the last 1 steps"),
        (
            {"optimizer.horizon": 40_000, "optimizer.warmup_steps": 40_000},
            "optimizer.warmup_steps is 40000, expected less than optimizer.horizon = 40000",
        ),
        (
            {"data.batch_size": 12, "optimizer.accumulate": 2, "mesh.data": 4},
            "data.batch_size is 12, expected a multiple of 8 (optimizer.accumulate = 2 x mesh.data = 4)",
        ),
        ({"train.frozen": (("(", True),)}, "train.frozen holds '(', which is not a regular expression"),
        ({"train.nonfinite": "ignore"}, "train.nonfinite is 'ignore', expected one of stop, skip"),
        ({"model.dtype": "float16"}, "model.dtype is 'float16', expected one of float32, bfloat16"),
        ({"evaluate.select": "best"}, "evaluate.select is 'best', expected one of last, best_on_source"),
    ],
)
def test_what_cannot_be_meant_is_refused(fields, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check_config(changed(fields))


def test_every_number_has_a_range():
    names = {name for name, _ in config_check.numbers(CONFIG)}
    assert {"seed", "augment.scales", "train.steps", "mesh.model", "evaluate.stride"} < names
    assert all(any(re.fullmatch(pattern, name) for pattern, _, _ in config_check._RANGES) for name in names)


def test_what_is_in_use_passes():
    check_config(CONFIG)
    unlabelled = DataConfig(source="blue_marble/unlabelled")
    check_config(dataclasses.replace(CONFIG, data=unlabelled, model=dataclasses.replace(CONFIG.model, classes=2)))
    for name in benchmark.CLIMATES:
        check_config(blue_marble.experiment(name))
    for name in crossearth.ARGUMENTS:
        check_config(from_config_dict(crossearth.get_config(name)))


def test_a_run_that_ends_within_its_warm_up_is_named(caplog):
    with caplog.at_level(logging.WARNING):
        check_config(changed({"train.steps": 20, "optimizer.warmup_steps": 100}))
    assert "ends during the warm-up of the learning rate: optimizer.warmup_steps is 100, train.steps is " in caplog.text


def test_more_steps_stretch_the_schedule_unless_a_horizon_is_set():
    values = blue_marble.get_config()
    values.train.steps = 4000  # as README shows
    longer = from_config_dict(values)
    check_config(longer)
    assert longer.horizon == 4000
    rates = jax.vmap(schedule(longer.optimizer, longer.horizon))(np.array([99, 2050, 3998, 3999]))
    # Full after 100 steps of warm-up; then left^0.9 with left = 1 - (step - 100) / 3899.
    expected = 1.5e-3 * np.array([1.0, (1949 / 3899) ** 0.9, (1 / 3899) ** 0.9, 0.0])
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    assert from_config_dict(crossearth.get_config("potsdam_irrg")).horizon == 40_000
