"""Every experiment in configs/ equals the text in golden/configs, so that a changed default is visible in a review.

A config that takes an argument (`configs/x.py:argument`) lists the documented arguments in `ARGUMENTS`. Its golden
file has all fields for the default argument and, for each other argument, the fields that differ. After an intended
change:
`CROSSEARTH_UPDATE_GOLDEN=1 pytest tests/configs_test.py`, and read the diff.
"""

import dataclasses
import importlib.util
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from ml_collections import ConfigDict

from crossearth_jax import benchmark
from crossearth_jax.analysis.baselines import labelled_pixels
from crossearth_jax.config import UserError, from_config_dict, to_config_dict
from crossearth_jax.config_check import check_config
from crossearth_jax.models.backbones import BACKBONES, find_backbone

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden" / "configs"
# configs/own.py depends on a user's file and is tested in tests/own_domains_test.py.
FILES = sorted(path for path in (ROOT / "configs").glob("*.py") if path.stem not in ("own", "__init__"))
NAMES = [path.stem for path in FILES]


@pytest.fixture(autouse=True)
def configs_import_each_other(monkeypatch):
    """Put the project folder on the path, as `python -m` does."""
    monkeypatch.syspath_prepend(str(ROOT))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"configs_{name}", ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def resolved(name: str) -> dict[str, ConfigDict]:
    """Return argument -> config; "" stands for the default."""
    module = load(name)
    return {"": module.get_config()} | {
        argument: module.get_config(argument) for argument in getattr(module, "ARGUMENTS", ())
    }


def flat(config: ConfigDict, prefix: str = "") -> dict[str, str]:
    fields = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            fields |= flat(value, f"{prefix}{key}.")
        else:
            fields[prefix + key] = repr(value)
    return fields


def text_of(configs: dict[str, ConfigDict]) -> str:
    default = flat(configs[""])
    lines = [f"{key} = {value}" for key, value in default.items()]
    for argument, config in configs.items():
        fields = flat(config)
        if argument:
            lines += ["", f"[{argument}]"]
            lines += [f"{key} = {value}" for key, value in fields.items() if default.get(key) != value]
            lines += [f"{key} is absent" for key in default if key not in fields]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", NAMES)
def test_resolves_to_the_golden_text(name):
    path, text = GOLDEN / f"{name}.txt", text_of(resolved(name))
    if os.environ.get("CROSSEARTH_UPDATE_GOLDEN") == "1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.exists(), f"no golden text for configs/{name}.py; run with CROSSEARTH_UPDATE_GOLDEN=1"
    assert text == path.read_text(), "if the change is wanted, run with CROSSEARTH_UPDATE_GOLDEN=1 and read the diff"


def test_no_golden_text_without_a_config():
    assert sorted(path.stem for path in GOLDEN.glob("*.txt")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_and_known_source(name):
    for config in resolved(name).values():
        typed = from_config_dict(config)
        assert from_config_dict(to_config_dict(typed)) == typed
        assert typed.data.source in benchmark.DOMAINS


@pytest.mark.parametrize("name", NAMES)
def test_unknown_key_is_refused(name):
    config = load(name).get_config().unlock()
    config.train.stepz = 3
    with pytest.raises(UserError, match=r"unknown config key 'config\.train\.stepz'; did you mean 'steps'\?"):
        from_config_dict(config)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_argument_is_refused(name):
    module = load(name)
    if not hasattr(module, "ARGUMENTS"):
        pytest.skip("takes no argument")
    with pytest.raises(UserError, match="no_such_argument"):
        module.get_config("no_such_argument")


@pytest.mark.parametrize("name", NAMES)
def test_docstring_starts_with_command_and_result(name):
    """The docstring of an experiment contains the command that runs it."""
    docstring = load(name).__doc__ or ""
    assert f"--config=configs/{name}.py" in docstring, "give the command in the module's docstring"


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(("training", "crops"), [("potsdam_irrg", (512, 504)), ("casid_subms", (1024, 1008))])
def test_the_benchmark_with_every_backbone(training, crops, backbone):
    config = from_config_dict(load("crossearth").get_config(f"{training},{backbone}"))
    check_config(config)
    crop = crops[config.model.vit.patch_size == 14]
    assert config.augment.crop_size == config.evaluate.window == crop and config.name.endswith(backbone)
    assert dataclasses.replace(config.model.vit, remat="cheap") == find_backbone(backbone, crop)[0]


def test_blue_marble_is_standardised_by_the_pixels_of_its_source(blue_marble_dir):
    pixels = np.concatenate([p for p, _ in labelled_pixels("blue_marble/temperate_green", "train", blue_marble_dir)])
    mean, deviation = load("blue_marble").PIXELS["temperate"]
    np.testing.assert_allclose(pixels.mean(0, dtype=float), mean, atol=0.05)
    np.testing.assert_allclose(pixels.std(0, dtype=float), deviation, atol=0.05)
