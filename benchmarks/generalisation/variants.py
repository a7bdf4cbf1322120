"""What the study compares: changes of one recipe, each a method of the paper or a rival of it.

All variants of a head share crops, batch, steps, learning rate and every other augmentation. The recipe is the same for
all sources; `docs/generalisation.md` says how its numbers were chosen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
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

HEADS = ("fcn", "mask2former", "linear", "eomt")
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
    learning_rate: float = 5e-4


@dataclasses.dataclass(frozen=True)
class Variant:
    """A row of the table."""

    name: str
    meaning: str
    change: Callable[[Config], Config]


def recipe(budget: Budget, head: str, vit: ViTConfig, classes: int) -> Config:
    """The configuration of the variant `rein`, without data and seed."""
    crop = budget.crop
    pixels = LossConfig(pixel_weight=1.0, dice_weight=1.0)
    # The set loss alone converges slowly; with the pixel-wise loss beside it short runs can be compared.
    masks = LossConfig(points=3136, pixel_weight=5.0)
    heads = {
        "fcn": (HeadConfig(kind="fcn", width=128), pixels),
        "mask2former": (HeadConfig(encoder_layers=3, decoder_layers=3), masks),
        "linear": (HeadConfig(kind="linear"), pixels),
        # Two of the ten blocks of the study's backbone: the same share as four of the 24 blocks of ViT-L.
        "eomt": (HeadConfig(kind="eomt", last_blocks=2), masks),
    }
    config, loss = heads[head]
    return Config(
        name="generalisation",
        data=DataConfig(window=2 * crop, batch_size=budget.batch),
        # Small crops need little memory, so that nothing is computed twice to save it.
        model=ModelConfig(classes=classes, vit=replace(vit, remat="none"), reins=ReinsConfig(), head=config),
        # Windows of two crops a side: a scale of 2 shows pixels at their own size.
        augment=AugmentConfig(crop_size=crop, scales=(1.5, 1.75, 2.0, 2.25, 2.5), vertical_flip=True),
        loss=loss,
        optimizer=OptimizerConfig(
            learning_rate=budget.learning_rate, warmup_steps=min(50, budget.steps // 10), clip_norm=1.0, ema=0.99
        ),
        train=TrainConfig(steps=budget.steps, checkpoint_every=100, keep_checkpoints=1),
        # Without overlap: the twelve appearance shifts alone would otherwise cost more than training.
        evaluate=EvaluateConfig(window=crop, stride=crop, batch_size=16, examples=0),
    )


def _linear_probe(config: Config) -> Config:
    """A linear classifier on the frozen features, with the pixel-wise loss of the light head."""
    head = HeadConfig(kind="linear")
    loss = LossConfig(pixel_weight=1.0, dice_weight=1.0)
    return replace(_without_rein(config), model=replace(config.model, reins=None, head=head), loss=loss)


def _with_styles(change: Callable[[Config], Config], style: StyleConfig) -> Callable[[Config], Config]:
    return lambda config: replace(change(config), style=style)


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
    # As wide in proportion to the backbone as the paper's head beside ViT-L. At full width it would cost ten times as
    # much as the rest of the step.
    mim = MimConfig(image_size=side, token_size=side, width=config.model.vit.width // 4)
    model = replace(config.model, mim=mim)
    return replace(config, model=model, mim=MimTaskConfig())


def _both(style: StyleConfig) -> Callable[[Config], Config]:
    return lambda config: _mim(_styles(style)(config))


def _full(config: Config) -> Config:
    """Train the backbone too, at a tenth of the learning rate."""
    train = replace(config.train, frozen=((r".*", False),))
    rates = ((r"backbone/.*", 0.1), (r".*", 1.0))
    return replace(_without_rein(config), train=train, optimizer=replace(config.optimizer, rates=rates))


_STUDY = (
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


_LOW = "frozen backbone with styles that keep the detail"
VARIANTS = (
    *_STUDY,
    Variant("frozen_styles_low", _LOW, _with_styles(_without_rein, LOW_STYLES)),
    *(
        Variant(f"{kind}_styles_low", f"{kind} in the {_LOW}", _with_styles(_adapter(kind), LOW_STYLES))
        for kind in ("lora", "soma", "earth_adapter")
    ),
)
# The variants of the table of adapters and styles: variant -> adapter and style.
FRAMEWORK: dict[str, tuple[str, str]] = {
    f"{name}{suffix}": (adapter, style)
    for name, adapter in (("frozen", "none"), *((kind, kind) for kind in ("rein", "lora", "soma", "earth_adapter")))
    for suffix, style in {"": "off", "_styles_low": "low"}.items()
}
# Names of groups that can be given instead of those of their variants.
GROUPS: dict[str, tuple[str, ...]] = {
    "study": tuple(variant.name for variant in _STUDY),
    "framework": tuple(FRAMEWORK),
}


def find(names: Sequence[str]) -> list[Variant]:
    """Return the variants of these names and groups, in the order of the table.

    Raises:
      KeyError: a name is unknown.
    """
    known = GROUPS | {variant.name: (variant.name,) for variant in VARIANTS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise KeyError(", ".join(unknown))
    chosen = {member for name in names for member in known[name]}
    return [variant for variant in VARIANTS if variant.name in chosen]
