"""Eight virtual devices for every test, and weights that several folders test with."""

import json
import os
import pathlib
import zlib

import jax
import numpy as np
import pytest

from crossearth_jax.config import (
    AugmentConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    HeadConfig,
    LossConfig,
    MimConfig,
    MimTaskConfig,
    ModelConfig,
    OptimizerConfig,
    ReinsConfig,
    StyleConfig,
    TrainConfig,
    ViTConfig,
    to_config_dict,
)
from crossearth_jax.prepare import prepare_domains

# The TPU compiler is installed: without this, every process that a test starts would look for a TPU first.
os.environ["JAX_PLATFORMS"] = "cpu"
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session", autouse=True)
def compiled_programs_are_kept(tmp_path_factory):
    """Many tests compile the same steps; the compiler's cache makes that one compilation for all, of any process."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))  # for commands that tests start
        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
        yield
        jax.config.update("jax_compilation_cache_dir", None)


GOLDEN = pathlib.Path(__file__).parent / "golden" / "train"


@pytest.fixture(scope="session")
def published_style():
    """The paper's style network under its published names, filled by the rule in golden/train/README.md."""
    shapes = json.loads((GOLDEN / "style_shapes.json").read_text())
    return {name: _style_tensor(name, tuple(shape)) for name, shape in shapes.items()}


def _style_tensor(name, shape):
    mean, std = _mean_and_std(name, shape)
    seed = 606 + zlib.crc32(name.encode())
    return np.float32(mean + std * np.random.Generator(np.random.PCG64(seed)).standard_normal(shape))


def _mean_and_std(name, shape):
    module, leaf = name.split(".")[-2:]
    rules = (
        (leaf == "num_batches_tracked", (0, 0)),
        (leaf == "running_var", (1, 0.1)),
        (leaf == "running_mean", (0, 0.1)),
        (name.endswith("bn.weight"), (1, 0.1)),
        (name.endswith("bn.bias"), (0, 0.1)),
        (name == "stylePredictor.fc.weight", (0, 0.15 / np.sqrt(768))),
        (module.startswith(("fc_gamma", "fc_beta")) and leaf == "weight", (0, 0.25)),
        (module.startswith("fc_gamma"), (1, 0.2)),
        (module.startswith("fc_beta"), (0, 0.2)),
        (leaf == "weight", (0, np.sqrt(2 / np.prod(shape[1:])))),
        (leaf == "bias", (0, 0.1)),
    )
    return next(value for fits, value in rules if fits)


@pytest.fixture(scope="session")
def blue_marble_dir(tmp_path_factory):
    """Prepared temperate domains of Blue Marble."""
    directory = tmp_path_factory.mktemp("prepared")
    prepare_domains(["blue_marble/temperate_green", "blue_marble/temperate_brown"], directory)
    return directory


@pytest.fixture(scope="session")
def tiny_config(blue_marble_dir):
    """A whole run in small: frozen backbone, Reins, both tasks, style injection, averaging, two micro-batches."""
    vit = ViTConfig(image_size=16, patch_size=4, width=16, depth=4, heads=2, mlp_width=32, feature_blocks=(0, 1, 2, 3))
    head = HeadConfig(
        width=16, heads=2, groups=4, encoder_layers=1, encoder_mlp_width=16, points=2, decoder_layers=1,
        decoder_mlp_width=16,
    )  # fmt: skip
    return Config(
        name="tiny",
        data=DataConfig(source="blue_marble/temperate_green", data_dir=str(blue_marble_dir), batch_size=16),
        model=ModelConfig(
            classes=5,
            vit=vit,
            reins=ReinsConfig(tokens=6, rank=2),
            head=head,
            mim=MimConfig(width=8, dilations=(1, 2), image_size=16, token_size=16),
        ),
        augment=AugmentConfig(crop_size=16, scales=(2.0, 4.0)),
        style=StyleConfig(probability=0.5),
        mim=MimTaskConfig(),
        loss=LossConfig(points=64),
        optimizer=OptimizerConfig(learning_rate=1e-2, ema=0.9, accumulate=2),
        train=TrainConfig(steps=4, log_every=1, checkpoint_every=2),
        evaluate=EvaluateConfig(window=16, stride=11, batch_size=16, examples=2),
    )


EXPERIMENT = """
import json
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(json.loads({text!r}))
"""


@pytest.fixture(scope="session")
def write_experiment():
    """Writes a config as a file for `--config`, `experiment.py` in a folder, and returns its path."""

    def write(folder, config):
        path = folder / "experiment.py"
        path.write_text(EXPERIMENT.format(text=to_config_dict(config).to_json()))
        return path

    return write
