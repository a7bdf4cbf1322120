"""Ablation of the parts of CrossEarth on Blue Marble (source: temperate), one variant per argument.

    python -m crossearth_jax.main --config=configs/blue_marble_ablation.py:source_only --workdir=runs/source_only
    python -m crossearth_jax.report runs/source_only runs/blue_marble --out=runs/comparison

`source_only` uses neither idea of the paper, `style` only Earth-Style Injection, `mim` only masked image modelling, and
`both` is `configs/blue_marble.py`. `reins` trains adapters and heads on a frozen backbone, `frozen` only the heads,
`full` all parameters without adapters. These three use both ideas and need the weights of a backbone:
`--config.train.init_from=FILE`. The last four are `source_only` with an augmentation that mixes the images of a batch
and needs no style network.
"""

from dataclasses import replace

from crossearth_configs.blue_marble import HEAD, experiment  # pyright: ignore[reportMissingImports]
from ml_collections import ConfigDict

from crossearth_jax.config import Config, MixConfig, UserError, to_config_dict

FROZEN_BACKBONE = ((r"backbone/.*", True), (r".*", False))


def _variants(both: Config) -> dict[str, Config]:
    segmentation = replace(both, mim=None, model=replace(both.model, mim=None))
    frozen = replace(both.train, frozen=FROZEN_BACKBONE)
    plain = replace(segmentation, style=None)

    def mixed(kind: str) -> Config:
        return replace(plain, augment=replace(plain.augment, mix=MixConfig(kind=kind)))

    no_reins = replace(both.model, reins=None, head=replace(HEAD, queries=16))
    return {
        "source_only": plain,
        "style": segmentation,
        "mim": replace(both, style=None),
        "both": both,
        "reins": replace(both, train=frozen),
        "frozen": replace(both, model=no_reins, train=frozen),
        "full": replace(both, model=no_reins),
        "statistics": mixed("statistics"),
        "fourier": mixed("fourier"),
        "cutmix": mixed("cutmix"),
        "grid_shuffle": mixed("grid_shuffle"),
    }


ARGUMENTS = tuple(_variants(experiment()))


def get_config(variant: str = "both") -> ConfigDict:
    """Return one variant (`ARGUMENTS`)."""
    if variant not in ARGUMENTS:
        raise UserError(f"configs/blue_marble_ablation.py:{variant} is unknown; expected one of {', '.join(ARGUMENTS)}")
    return to_config_dict(replace(_variants(experiment())[variant], name=f"blue_marble-{variant}"))
