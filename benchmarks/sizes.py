"""The models that are measured: the paper's, and a tiny one to test that the scripts run."""

from __future__ import annotations

import dataclasses

from crossearth_jax.config import HeadConfig, MimConfig, ModelConfig, ReinsConfig, ViTConfig


@dataclasses.dataclass(frozen=True)
class Size:
    """A model and the image it is measured on."""

    model: ModelConfig
    image: int  # side, pixels
    points: int  # sampled per mask by the set loss


REMATS = ("blocks", "cheap", "none")  # values of `model.vit.remat`

SIZES = {
    "vit_l": Size(ModelConfig(mim=MimConfig()), 512, 12544),
    "tiny": Size(
        ModelConfig(
            vit=ViTConfig(image_size=64, width=64, depth=4, heads=1, mlp_width=128, feature_blocks=(0, 1, 2, 3)),
            reins=ReinsConfig(tokens=8, rank=4),
            head=HeadConfig(
                width=32,
                heads=2,
                groups=8,
                encoder_layers=1,
                encoder_mlp_width=64,
                points=2,
                decoder_layers=2,
                decoder_mlp_width=64,
            ),
            mim=MimConfig(width=16, dilations=(1, 2), image_size=64, token_size=64),
        ),
        64,
        98,
    ),
}
