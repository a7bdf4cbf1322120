"""Pretrains the small backbone of `configs/blue_marble.py` by masked image modelling, without any label.

It sees the 2,239 `blue_marble/unlabelled` tiles: every climate, both seasons, train blocks of the globe only.
"""

from configs.blue_marble import VIT, WEAK_COLOURS
from crossearth_jax.config import (
    Config,
    DataConfig,
    MimConfig,
    MimTaskConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    to_config_dict,
)


def get_config():
    steps = 6000
    return to_config_dict(
        Config(
            name="pretrain_blue_marble",
            data=DataConfig(source="blue_marble/unlabelled", batch_size=32),
            model=ModelConfig(
                classes=5,
                vit=VIT,
                reins=None,
                head=None,
                mim=MimConfig(width=24, dilations=(1, 2), image_size=32, token_size=32),
            ),
            augment=WEAK_COLOURS,
            loss=None,
            mim=MimTaskConfig(mask_ratio=0.5, block_size=128),
            optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=200, horizon=steps, ema=0.999),
            train=TrainConfig(steps=steps, frozen=((r".*", False),), checkpoint_every=1000),
        )
    )
