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

VIT = ViTConfig(
    image_size=32,
    patch_size=2,
    width=96,
    depth=4,
    heads=4,
    mlp_width=384,
    layer_scale=1.0,
    feature_blocks=(0, 1, 2, 3),
    pyramid=(2.0, 1.0, 0.5, 0.25),
    remat=False,
)

# Colour tells most at 7 km a pixel, so it is changed less than in photographs.
WEAK_COLOURS = AugmentConfig(
    crop_size=32,
    scales=(1.5, 1.75, 2.0, 2.25, 2.5),  # tiles are 64 pixels: 0.75 to 1.25 of their resolution
    vertical_flip=True,
    brightness=8.0,
    contrast=(0.9, 1.1),
    saturation=(0.9, 1.1),
    hue=3,
)


def get_config(source: str = "temperate"):
    steps = 2000
    return to_config_dict(
        Config(
            name=f"blue_marble-{source}",
            data=DataConfig(source=f"blue_marble/{source}_green", batch_size=8),
            model=ModelConfig(
                classes=5,
                vit=VIT,
                reins=ReinsConfig(tokens=16, rank=8, scale=0.01),
                head=HeadConfig(
                    width=64,
                    heads=4,
                    groups=8,
                    encoder_layers=1,
                    encoder_mlp_width=128,
                    points=2,
                    decoder_layers=3,
                    decoder_mlp_width=128,
                ),
            ),
            augment=WEAK_COLOURS,
            loss=LossConfig(points=512),
            optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=100, horizon=steps, ema=0.99, clip_norm=1.0),
            train=TrainConfig(steps=steps, frozen=((r".*", False),), checkpoint_every=500),
            evaluate=EvaluateConfig(window=32, stride=32, batch_size=32),
        )
    )
