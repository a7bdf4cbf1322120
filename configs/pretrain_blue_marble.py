"""Pretrain the small backbone of `configs/blue_marble.py` by masked image modelling, without labels.

    python -m crossearth_jax.main --config=configs/pretrain_blue_marble.py --workdir=runs/pretrain --mode=train

It uses the 2,239 tiles of `blue_marble/unlabelled`: all climates and both seasons, but only the train blocks of the
globe. Images are normalised with the pixel statistics of the temperate climate, since the backbone is meant for that
source.
"""

from dataclasses import replace

from crossearth_configs.blue_marble import AUGMENT, BLOCK, MIM, PIXELS, VIT  # pyright: ignore[reportMissingImports]
from ml_collections import ConfigDict

from crossearth_jax.config import (
    Config,
    DataConfig,
    MimTaskConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    to_config_dict,
)


def get_config() -> ConfigDict:
    """Return the experiment."""
    steps = 2000
    return to_config_dict(
        Config(
            name="pretrain_blue_marble",
            data=DataConfig(source="blue_marble/unlabelled", batch_size=64),
            model=ModelConfig(
                classes=5, vit=replace(VIT, pixel_statistics=PIXELS["temperate"]), reins=None, head=None, mim=MIM
            ),
            augment=AUGMENT,
            loss=None,
            mim=MimTaskConfig(mask_ratio=0.5, block_size=2 * BLOCK),
            optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=200, ema=0.998),
            train=TrainConfig(steps=steps, frozen=((r".*", False),), checkpoint_every=500),
        )
    )
