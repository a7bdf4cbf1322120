"""The backbones by name: networks (`KINDS`) and configurations for published weights (`BACKBONES`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from flax import nnx

from crossearth_jax.config import UserError, ViTConfig
from crossearth_jax.models.vit import VisionTransformer

# `ViTConfig.kind` -> network. It is called with the configuration, the type of the matrix products and `rngs`; the
# result, called with images and an adapter or None, returns one feature map per feature block (`VisionTransformer`).
KINDS: dict[str, Callable[..., Any]] = {"vit": VisionTransformer}

_S = ViTConfig(width=384, depth=12, heads=6, mlp_width=1536, feature_blocks=(2, 5, 8, 11))
_B = replace(_S, width=768, heads=12, mlp_width=3072)
_L = ViTConfig()
_G = replace(_L, width=1536, depth=40, heads=24, swiglu=True, feature_blocks=(12, 19, 26, 39))
_H = replace(_L, width=1280, depth=32, heads=20, mlp_width=5120, swiglu=True, feature_blocks=(10, 15, 20, 31))


def _patch14(vit: ViTConfig) -> ViTConfig:
    """DINOv2 as published: patches of 14 pixels and 37 x 37 positions."""
    return replace(vit, patch_size=14, image_size=518)


def _registers(vit: ViTConfig) -> ViTConfig:
    return replace(_patch14(vit), registers=4, position="antialiased_table")


def _dinov3(vit: ViTConfig) -> ViTConfig:
    return replace(vit, registers=4, position="rope", key_bias=False, norm_epsilon=1e-5)


# Mean and standard deviation of the images of SAT-493M, in the units of `ViTConfig.pixel_statistics`.
_SAT493M = (
    (255 * 0.430, 255 * 0.411, 255 * 0.296),
    (255 * 0.213, 255 * 0.156, 255 * 0.143),
)

# Name -> value of `model.vit`. docs/howto/backbones.md has sources and licences of the weights.
BACKBONES: dict[str, ViTConfig] = {
    "dinov2_vits16": _S,  # Meta's files with patches of 14 pixels, converted to 16 when they are read
    "dinov2_vitb16": _B,
    "dinov2_vitl16": _L,
    "dinov2_vitg16": _G,
    "dinov2_vits14": _patch14(_S),
    "dinov2_vitb14": _patch14(_B),
    "dinov2_vitl14": _patch14(_L),
    "dinov2_vitg14": _patch14(_G),
    "dinov2_vits14_reg": _registers(_S),
    "dinov2_vitb14_reg": _registers(_B),
    "dinov2_vitl14_reg": _registers(_L),
    "dinov2_vitg14_reg": _registers(_G),
    "dinov3_vits16": _dinov3(_S),
    "dinov3_vits16plus": _dinov3(replace(_S, swiglu=True)),
    "dinov3_vitb16": _dinov3(_B),
    "dinov3_vitl16": _dinov3(_L),
    "dinov3_vith16plus": _dinov3(_H),
    "dinov3_vitl16_sat493m": replace(_dinov3(_L), pixel_statistics=_SAT493M),
}


def find_backbone(name: str, side: int) -> tuple[ViTConfig, int]:
    """Return the configuration of a backbone, and the side of the largest crops of `side` pixels or less that fit it.

    Crops have an even number of patches along a side, so that no level of the feature pyramid has a rounded size.
    `image_size` is the side of the crops, except for patches of 14 pixels, whose position table keeps its published
    size and is resized to every image.

    Raises:
      UserError: there is no backbone of this name.
    """
    if name not in BACKBONES:
        raise UserError(f"there is no backbone '{name}', expected one of {', '.join(BACKBONES)}")
    vit = BACKBONES[name]
    crop = max(side // (2 * vit.patch_size), 1) * 2 * vit.patch_size
    return (vit if vit.patch_size == 14 else replace(vit, image_size=crop)), crop


def build_backbone(config: ViTConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs) -> Any:
    """Build the backbone of a model.

    Raises:
      UserError: there is no network of this kind.
    """
    if config.kind not in KINDS:
        raise UserError(f"model.vit.kind is '{config.kind}', expected one of {', '.join(KINDS)}")
    return KINDS[config.kind](config, dtype, rngs=rngs)
