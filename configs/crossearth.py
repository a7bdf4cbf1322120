"""The CrossEarth benchmark: 14 trainings for 25 cross-domain settings and the four in-domain rows of CASID.

    python -m crossearth_jax.main '--config=configs/crossearth.py:P(i)2V' --workdir=runs/potsdam_irrg \
        --config.train.init_from=dinov2_vitl14_pretrain.pth
    python -m crossearth_jax.main --config=configs/crossearth.py:all --mode=evaluate \
        --checkpoints=checkpoints --workdir=runs/table

The argument is a training (`casid_subms`: all settings of that source are scored), a setting (`Sub2Tem`: the same
training, but only this setting is scored) or `all` (the table of all checkpoints that exist). `train.init_from` is
Meta's weights file of DINOv2 ViT-L/14, or the authors' `dinov2_converted.pth` (crops of 512) or
`dinov2_converted_1024x1024.pth` (crops of 1024). Without such a file the frozen backbone has random weights and the
training is useless.

A second part of the argument names another backbone, whose weights file is then `train.init_from`
(docs/howto/backbones.md): `--config=configs/crossearth.py:P(i)2V,dinov3_vitl16`.

The recipe is the published one for each crop size: iterations, learning rates, crops, windows, Earth-Style Injection (a
tenth of the images) and masked image modelling. The global batch size is not published; 4 is taken from the names of
the authors' configurations. Styles use the small network of the package. For the paper's network set
`--config.style.backend=inception --config.style.weights=FILE --config.style.statistics=FILE`.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from crossearth_jax.benchmark import DOMAINS, SETTINGS, TRAININGS, Training, training_of
from crossearth_jax.config import (
    AugmentConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    MimConfig,
    MimTaskConfig,
    ModelConfig,
    OptimizerConfig,
    StyleConfig,
    TrainConfig,
    UserError,
    to_config_dict,
)
from crossearth_jax.models.backbones import find_backbone

ROWS = tuple(row.name for row in SETTINGS.values() if training_of(row.name) is not None)
ARGUMENTS = (*TRAININGS, *ROWS, "all")

OPTIMIZERS = {  # by crop size; training stops at 30,000 steps of schedules of 40,000 steps
    512: OptimizerConfig(learning_rate=1e-4, warmup_steps=0, horizon=40_000),
    1024: OptimizerConfig(learning_rate=6e-5, warmup_steps=10_000, warmup_factor=1e-6, horizon=40_000),
}
STRIDES = {512: 341, 1024: 683}
# What "cheap" keeps of two images (one for each task) of 1024 pixels does not fit into the 16 GB of a TPU v5e.
REMAT = {512: "cheap", 1024: "blocks"}


def experiment(training: Training, name: str, settings: tuple[str, ...] = (), backbone: str = "") -> Config:
    """Return the typed configuration of one training, scored on `settings` (all of its source if there are none)."""
    vit, crop = find_backbone(backbone or "dinov2_vitl16", training.crop)
    classes = len(DOMAINS[training.source].classes)
    return Config(
        name=f"crossearth-{name}" + f"-{backbone}" * bool(backbone),
        seed=42,
        data=DataConfig(source=training.source, batch_size=4),
        model=ModelConfig(classes=classes, vit=replace(vit, remat=REMAT[training.crop]), mim=MimConfig()),
        augment=AugmentConfig(crop_size=crop),
        style=StyleConfig(probability=0.1, alpha=0.1, mask_ratio=0.7, block_size=64),
        mim=MimTaskConfig(mask_ratio=0.1, block_size=64),
        optimizer=OPTIMIZERS[training.crop],
        train=TrainConfig(steps=30_000),
        evaluate=EvaluateConfig(window=crop, stride=STRIDES[training.crop], settings=settings),
    )


def get_config(name: str = "potsdam_irrg") -> ConfigDict:
    """Return the experiment of a training, a setting, or the whole table (`ARGUMENTS`); ",BACKBONE" may follow."""
    name, _, backbone = name.partition(",")
    if name not in ARGUMENTS:
        raise UserError(f"configs/crossearth.py:{name} is unknown; expected one of {', '.join(ARGUMENTS)}")
    training = training_of(name)
    if training is None:
        return to_config_dict(experiment(TRAININGS["potsdam_irrg"], "all", ROWS, backbone))
    return to_config_dict(experiment(training, training.name, (name,) if name in SETTINGS else (), backbone))
