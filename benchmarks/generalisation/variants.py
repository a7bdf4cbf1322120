"""What the study compares: changes of one recipe, each a method of the paper or a rival of it.

All variants of a head share crops, batch, steps, learning rate and every other augmentation. The recipe is the same for
all sources; `docs/generalisation.md` says how its numbers were chosen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace

from crossearth_jax.config import (
    AugmentConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    HeadConfig,
    LossConfig,
    MimConfig,
    MimTaskConfig,
    MixConfig,
    ModelConfig,
    OptimizerConfig,
    ReinsConfig,
    StyleConfig,
    TrainConfig,
    ViTConfig,
)

HEADS = ("fcn", "mask2former")
REFERENCE = "rein"  # what differences are taken to
PAPER_STYLES = StyleConfig()  # a tenth of the images, a tenth of the code, blocks
# The change of colour alone, in all images. The blocks of the paper would cut it into patches of different colour.
LOW_STYLES = StyleConfig(probability=1.0, alpha=0.5, mask_ratio=1.0, detail="low", draw_scale=0.5)

OF_SOURCE = "source"  # in the place of a statistics file: it is estimated from the source's train split
OWN_STYLES = replace(LOW_STYLES, statistics=OF_SOURCE)


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a run may take, the same for all variants."""

    steps: int
    crop: int  # side in pixels
    batch: int  # images


@dataclasses.dataclass(frozen=True)
class Variant:
    """A row of the table."""

    name: str
    meaning: str
    change: Callable[[Config], Config]


def recipe(budget: Budget, head: str, vit: ViTConfig, classes: int) -> Config:
    """The configuration of the variant `rein`, without data and seed."""
    crop = budget.crop
    heads = {
        "fcn": (HeadConfig(kind="fcn", width=128), LossConfig(pixel_weight=1.0, dice_weight=1.0)),
        # The set loss alone converges slowly; with the pixel-wise loss beside it short runs can be compared.
        "mask2former": (HeadConfig(encoder_layers=3, decoder_layers=3), LossConfig(points=3136, pixel_weight=5.0)),
    }
    config, loss = heads[head]
    return Config(
        name="generalisation",
        data=DataConfig(window=2 * crop, batch_size=budget.batch),
        model=ModelConfig(classes=classes, vit=vit, reins=ReinsConfig(), head=config),
        # Windows of two crops a side: a scale of 2 shows pixels at their own size.
        augment=AugmentConfig(crop_size=crop, scales=(1.5, 1.75, 2.0, 2.25, 2.5), vertical_flip=True),
        loss=loss,
        optimizer=OptimizerConfig(
            learning_rate=5e-4, warmup_steps=min(50, budget.steps // 10), clip_norm=1.0, ema=0.99
        ),
        train=TrainConfig(steps=budget.steps, checkpoint_every=100, keep_checkpoints=1),
        evaluate=EvaluateConfig(window=crop, stride=round(crop * 2 / 3), batch_size=16, examples=0),
    )


def _linear_probe(config: Config) -> Config:
    """A linear classifier on the frozen features, with the pixel-wise loss of the light head."""
    head = HeadConfig(kind="linear")
    loss = LossConfig(pixel_weight=1.0, dice_weight=1.0)
    return replace(_without_rein(config), model=replace(config.model, reins=None, head=head), loss=loss)


def _augment(**changes: object) -> Callable[[Config], Config]:
    return lambda config: replace(config, augment=replace(config.augment, **changes))  # pyright: ignore[reportArgumentType]


def _mix(kind: str) -> Callable[[Config], Config]:
    return _augment(mix=MixConfig(kind=kind))


def _styles(style: StyleConfig) -> Callable[[Config], Config]:
    return lambda config: replace(config, style=style)


def _without_rein(config: Config) -> Config:
    return replace(config, model=replace(config.model, reins=None))


def _adapter(kind: str) -> Callable[[Config], Config]:
    return lambda config: replace(config, model=replace(config.model, adapter=kind))


def _mim(config: Config) -> Config:
    side = config.augment.crop_size
    model = replace(config.model, mim=MimConfig(image_size=side, token_size=side))
    return replace(config, model=model, mim=MimTaskConfig())


def _both(style: StyleConfig) -> Callable[[Config], Config]:
    return lambda config: _mim(_styles(style)(config))


def _full(config: Config) -> Config:
    """Train the backbone too, at a tenth of the learning rate."""
    train = replace(config.train, frozen=((r".*", False),))
    rates = ((r"backbone/.*", 0.1), (r".*", 1.0))
    return replace(_without_rein(config), train=train, optimizer=replace(config.optimizer, rates=rates))


VARIANTS = (
    Variant("linear_probe", "frozen backbone, linear classifier of patches", _linear_probe),
    Variant("frozen", "frozen backbone and a head", _without_rein),
    Variant("rein", "Rein adapters in the frozen backbone", lambda config: config),
    Variant("lora", "low-rank updates (LoRA) in the frozen backbone", _adapter("lora")),
    Variant("soma", "minor singular components (SoMA) of the frozen backbone", _adapter("soma")),
    Variant("earth_adapter", "mixture of frequency adapters in the frozen backbone", _adapter("earth_adapter")),
    Variant("rein_styles", "Rein and Earth-Style Injection as published", _styles(PAPER_STYLES)),
    Variant("rein_styles_low", "Rein and styles that keep the detail", _styles(LOW_STYLES)),
    Variant("rein_mim", "Rein and masked image modelling", _mim),
    Variant("crossearth", "Rein, styles as published and masked image modelling", _both(PAPER_STYLES)),
    Variant("crossearth_low", "Rein, styles that keep the detail, masked image modelling", _both(LOW_STYLES)),
    Variant("full_fine_tuning", "the whole backbone is trained", _full),
    Variant("rein_plain", "Rein without distortion of colours", _augment(photometric=False)),
    Variant("rein_jitter", "Rein and twice the distortion of colours", _augment(
        brightness=64.0, contrast=(0.25, 1.75), saturation=(0.0, 2.0), hue=36
    )),
    Variant("rein_scales", "Rein and crops at half to twice their size", _augment(scales=(1.0, 1.4, 2.0, 2.8, 4.0))),
    Variant("rein_fourier", "Rein and Fourier amplitudes mixed within the batch", _mix("fourier")),
    Variant("rein_statistics", "Rein and colour statistics mixed within the batch", _mix("statistics")),
    Variant("rein_cutmix", "Rein and CutMix", _mix("cutmix")),
    Variant("rein_grid_shuffle", "Rein and crops with their cells shuffled", _mix("grid_shuffle")),
    Variant("rein_styles_own", "as rein_styles_low, with the styles of the source's own images", _styles(OWN_STYLES)),
)  # fmt: skip


def find(names: list[str]) -> list[Variant]:
    """The variants called so, all without a name, in the order of the table.

    Raises:
      KeyError: a name is unknown.
    """
    known = {variant.name: variant for variant in VARIANTS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise KeyError(", ".join(unknown))
    return [variant for variant in VARIANTS if not names or variant.name in names]
