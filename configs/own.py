"""Your own domains: train on one domain of a `domains.toml`, or on several joined by "+", and evaluate on all of them.

    python -m crossearth_jax.main --config=configs/own.py:domains.toml,dubai --workdir=runs/dubai
    python -m crossearth_jax.main --config=configs/own.py:domains.toml,dubai+my_city,vit_s --workdir=runs/two \
        --config.train.init_from=dinov2_vits14_pretrain.pth

`docs/howto/own_dataset.md` explains the file, whose domains are prepared first if needed. The third part of the
argument is the model: `tiny`, the default, is trained from scratch in minutes on two CPU cores; `vit_s`, `vit_b` and
`vit_l` train Rein adapters on a frozen DINOv2, whose weights file is `train.init_from`. The name of any other backbone,
such as `dinov3_vitl16` (docs/howto/backbones.md), does the same with that one. All use Earth-Style Injection and masked
image modelling. Patches, crops and windows follow from the sizes of the source's images.
"""

from dataclasses import replace
from typing import Any

from crossearth_configs.blue_marble import HEAD, MIM, REINS, VIT  # pyright: ignore[reportMissingImports]
from ml_collections import ConfigDict

from crossearth_jax.benchmark.domains_file import read_domains_file
from crossearth_jax.benchmark.own_files import image_sizes
from crossearth_jax.config import (
    AugmentConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    LossConfig,
    MimConfig,
    MimTaskConfig,
    ModelConfig,
    OptimizerConfig,
    StyleConfig,
    TrainConfig,
    UserError,
    to_config_dict,
)
from crossearth_jax.models.backbones import BACKBONES, find_backbone

SHORT = {"vit_s": "dinov2_vits16", "vit_b": "dinov2_vitb16", "vit_l": "dinov2_vitl16"}
SIZES = ("tiny", *SHORT, *BACKBONES)


def tiny(side: int, classes: int) -> dict[str, Any]:
    """Return the fields for a small model from scratch, with crops of 16 x 16 patches that fit into an image."""
    crop = next((crop for crop in (128, 64, 32) if crop <= side), 16)
    window = min(2 * crop, max(side, crop))  # read from the files at full resolution; crops are taken from it
    natural = window / crop  # the scale that keeps the ground resolution
    vit = replace(VIT, image_size=crop, patch_size=crop // 16, pixel_statistics="source")
    reins = replace(REINS, tokens=max(16, 2 * classes))
    mim = replace(MIM, image_size=crop, token_size=crop)
    return dict(
        data=DataConfig(window=window, batch_size=8),
        model=ModelConfig(classes=classes, vit=vit, reins=reins, head=HEAD, mim=mim),
        augment=AugmentConfig(
            crop_size=crop, scales=tuple(natural * scale for scale in (0.75, 0.875, 1.0, 1.0, 1.25)),
            vertical_flip=True, brightness=16.0, contrast=(0.75, 1.25), saturation=(0.75, 1.25), hue=6,
        ),
        loss=LossConfig(points=512, pixel_weight=5.0),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=50, clip_norm=1.0, ema=0.99),
        train=TrainConfig(steps=500, checkpoint_every=100, frozen=((r".*", False),)),
        evaluate=EvaluateConfig(window=crop, stride=round(crop * 2 / 3), batch_size=64),
    )  # fmt: skip


def vit(size: str, side: int, classes: int) -> dict[str, Any]:
    """Return the fields for a frozen backbone with the published recipe, in crops of at most 512 pixels."""
    backbone, crop = find_backbone(SHORT.get(size, size), min(side, 512))
    mim = MimConfig(image_size=crop, token_size=crop)
    return dict(
        data=DataConfig(window=crop, batch_size=4),
        model=ModelConfig(classes=classes, vit=backbone, mim=mim),
        augment=AugmentConfig(crop_size=crop),
        loss=LossConfig(),
        optimizer=OptimizerConfig(learning_rate=1e-4),
        train=TrainConfig(steps=10_000),
        evaluate=EvaluateConfig(window=crop, stride=round(crop * 2 / 3)),
    )  # fmt: skip


def get_config(argument: str = "") -> ConfigDict:
    """Return the experiment for the argument "FILE,SOURCE" or "FILE,SOURCE,SIZE"."""
    path, source, size = (*argument.split(","), "tiny", "", "")[:3] if argument.count(",") in (1, 2) else ("", "", "")
    if not path or size not in SIZES:
        raise UserError(
            f"configs/own.py:{argument} is not valid, expected FILE,SOURCE or FILE,SOURCE,SIZE, such as "
            f"configs/own.py:domains.toml,my_city; sizes: {', '.join(SIZES)}"
        )
    file = read_domains_file(path)
    sources = file.find(source.split("+"))
    side, classes = min(min(image_sizes(domain).typical) for domain in sources), len(file.taxonomy.classes)
    parts = tiny(side, classes) if size == "tiny" else vit(size, side, classes)
    data = replace(parts.pop("data"), source="+".join(domain.key for domain in sources), domains_file=path)
    config = Config(name=f"own-{source}-{size}", data=data, style=StyleConfig(), mim=MimTaskConfig(), **parts)
    return to_config_dict(config)
