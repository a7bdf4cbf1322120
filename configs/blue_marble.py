"""Blue Marble: train on one climate in the green season, evaluate on four climates in two seasons."""

from crossearth_jax.config import (
    AugmentConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    HeadConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ReinsConfig,
    TrainConfig,
    ViTConfig,
    to_config_dict,
)


def get_config(source: str = "temperate"):
    steps = 2000
    return to_config_dict(
        Config(
            name=f"blue_marble-{source}",
            data=DataConfig(source=f"blue_marble/{source}_green", batch_size=16),
            model=ModelConfig(
                classes=5,
                vit=ViTConfig(
                    image_size=32,
                    patch_size=4,
                    width=128,
                    depth=4,
                    heads=4,
                    mlp_width=512,
                    layer_scale=1.0,
                    feature_blocks=(0, 1, 2, 3),
                    remat=False,
                ),
                reins=ReinsConfig(tokens=16, rank=8, scale=0.01),
                head=HeadConfig(
                    width=64,
                    heads=4,
                    groups=8,
                    encoder_layers=2,
                    encoder_mlp_width=128,
                    decoder_layers=3,
                    decoder_mlp_width=128,
                ),
            ),
            augment=AugmentConfig(crop_size=32, vertical_flip=True),
            loss=LossConfig(points=512),
            optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=100, horizon=steps, clip_norm=1.0),
            train=TrainConfig(steps=steps, frozen=((r".*", False),), checkpoint_every=500),
            evaluate=EvaluateConfig(window=32, stride=32, batch_size=64),
        )
    )
