"""Eight virtual CPU devices for every test, and fixtures that tests in several folders share.

`CROSSEARTH_TEST_PLATFORM=cuda pytest tests/models` runs tests on a GPU; choose tests that need only one device.
"""

import dataclasses
import json
import os
import pathlib
import zlib

import jax
import numpy as np
import pytest

from crossearth_jax.benchmark import IGNORE
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

# The TPU compiler is installed: without this, every process that a test starts would first search for a TPU.
PLATFORM = os.environ.get("CROSSEARTH_TEST_PLATFORM", "cpu")
PLATFORMS = "cpu" if PLATFORM == "cpu" else f"{PLATFORM},cpu"
os.environ["JAX_PLATFORMS"] = PLATFORMS
if PLATFORM == "cpu":
    # Optimised machine code takes longer to compile than it saves. Processes that tests start inherit this.
    os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}".strip()
jax.config.update("jax_platforms", PLATFORMS)
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session", autouse=True)
def compiled_programs_are_kept(tmp_path_factory):
    """Use one compilation cache for all test processes, since many tests compile the same steps."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # shared by all pytest workers
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))  # for commands that tests start
        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
        yield
        jax.config.update("jax_compilation_cache_dir", None)


GOLDEN = pathlib.Path(__file__).parent / "golden" / "train"


@pytest.fixture(scope="session")
def published_style():
    """Return tensors of the paper's style network by published names, filled by the rule in golden/train/README.md."""
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
    """Prepare the temperate domains of Blue Marble; return the data folder."""
    directory = tmp_path_factory.mktemp("prepared")
    prepare_domains(["blue_marble/temperate_green", "blue_marble/temperate_brown"], directory)
    return directory


@pytest.fixture(scope="session")
def tiny_config(blue_marble_dir):
    """Return a small configuration: frozen backbone, Reins, both tasks, style injection, EMA, two micro-batches."""
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
        optimizer=OptimizerConfig(learning_rate=1e-2, horizon=40_000, ema=0.9, accumulate=2),
        train=TrainConfig(steps=4, log_every=1, checkpoint_every=2),
        evaluate=EvaluateConfig(window=16, stride=11, batch_size=16, examples=2),
    )


@pytest.fixture(scope="session")
def comparable_config(tiny_config):
    """Return a small configuration whose results differ between meshes by floating-point rounding only."""
    # With eight groups, every mesh draws the same styles. Some gradients are exactly zero except for rounding noise
    # (biases of keys, which have no effect on a softmax). Adam divides by the magnitude of the gradient and would turn
    # this noise into full steps; a larger epsilon keeps these steps small. The mask losses choose points by
    # uncertainty, and rounding could change the choice between equal points; here they use all candidates.
    return dataclasses.replace(
        tiny_config,
        loss=dataclasses.replace(tiny_config.loss, oversample=1.0, importance=1.0),
        style=dataclasses.replace(tiny_config.style, groups=8),
        optimizer=dataclasses.replace(tiny_config.optimizer, eps=1e-2, learning_rate=1e-3, accumulate=1),
        train=dataclasses.replace(tiny_config.train, steps=3, keep_checkpoints=1),
    )


def _logged(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def assert_same_run():
    """Return a function that compares two training runs: losses of every step, final and averaged parameters."""

    def compare(found, found_in, expected, expected_in):
        records, others = _logged(found_in), _logged(expected_in)
        assert [record["step"] for record in records] == [record["step"] for record in others] == [1, 2, 3]
        names = [name for name in others[0] if name.startswith("loss")]
        assert len(names) > 4 and any("styled" in name for name in names)
        for a, b in zip(records, others, strict=True):
            np.testing.assert_allclose([a[n] for n in names], [b[n] for n in names], atol=1e-5, rtol=1e-5)
        for part in ("trainable", "average"):
            arrays, references = getattr(found.state, part), getattr(expected.state, part)
            assert arrays.keys() == references.keys()
            for name in references:
                np.testing.assert_allclose(arrays[name], references[name], atol=1e-5, rtol=1e-5, err_msg=name)

    return compare


EXPERIMENT = """
import json
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(json.loads({text!r}))
"""


@pytest.fixture(scope="session")
def write_experiment():
    """Return a function that writes a configuration as `experiment.py` into a folder and returns its path."""

    def write(folder, config):
        path = folder / "experiment.py"
        path.write_text(EXPERIMENT.format(text=to_config_dict(config).to_json()))
        return path

    return write


class RandomSplit:
    """A split of random images of given sizes with random Blue Marble labels, some of them ignored."""

    def __init__(self, domain, sizes):
        self.domain, self.sizes = domain, sizes

    def __len__(self):
        return len(self.sizes)

    def size(self, index):
        return self.sizes[index]

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (*self.sizes[index], 3), np.uint8)
        label = rng.choice(np.array([0, 1, 2, 3, 4, IGNORE], np.uint8), self.sizes[index])
        return {"image": image, "label": label, "index": index, "id": str(index), "domain": self.domain}


@pytest.fixture(scope="session")
def random_split():
    """Return a function `random_split(domain, sizes)` that creates a replacement of a prepared split."""
    return RandomSplit
