"""Inference of a model's configuration from the shapes of its parameters.

The shapes do not determine the number of attention heads, the number of normalisation groups and the feature blocks.
These follow DINOv2 and DINOv3 (64 channels per head) and CrossEarth's head, unless the user gives a configuration. A
backbone with registers is a DINOv2 with registers if it has a position table, else a DINOv3.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from crossearth_jax.config import HeadConfig, MimConfig, ModelConfig, ReinsConfig, UserError, ViTConfig
from crossearth_jax.models.network import SegmentationModel

HEAD_WIDTH = 64  # channels per attention head, in every DINOv2 and in DINOv3 except 7B
WIDTHS = (384, 768, 1024, 1280, 1536)  # S, B, L, H+, g
LEVELS = 3
# Features are taken after 1/3, 1/2, 2/3 and all of the blocks: for ViT-L after blocks 7, 11, 15, 23 (from 0).
_FEATURE_DEPTHS = (1 / 3, 1 / 2, 2 / 3, 1)

_GIVE = "give the model's configuration (config= in Python, --config for crossearth_jax.convert)"

Shapes = Mapping[str, tuple[int, ...]]


def shapes_of(params: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of arrays by name."""
    return {name: tuple(value.shape) for name, value in params.items()}


def infer_config(shapes: Shapes) -> ModelConfig:
    """Return the configuration of the released model whose parameters have these shapes.

    Parts without parameters keep their default configuration, with two exceptions: the reconstruction head is then
    None, and Reins are None if there is a mask decoder.

    Raises:
      UserError: the shapes belong to no such model.
    """
    try:
        classes = shapes.get("head/mask_decoder/class_head/bias", (7,))[0] - 1
        has_head = "head/mask_decoder/class_head/bias" in shapes
        reins = None if has_head else ReinsConfig()
        if "reins/tokens_a" in shapes:
            _, tokens, rank = shapes["reins/tokens_a"]
            reins = ReinsConfig(tokens=tokens, rank=rank)
        mim = None
        if "mim/input_conv/kernel" in shapes:
            mim = MimConfig(width=shapes["mim/input_conv/kernel"][3])
            mim = dataclasses.replace(mim, token_size=shapes.get("mim/mask_token", (mim.token_size,))[0])
        return ModelConfig(
            classes=classes,
            vit=_vit(shapes) if "backbone/class_token" in shapes else ViTConfig(),
            reins=reins,
            head=_head(shapes) if has_head else HeadConfig(),
            mim=mim,
        )
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"the parameters belong to no complete model ({error!r}); {_GIVE}") from None


def _vit(shapes: Shapes) -> ViTConfig:
    depth, width, _ = shapes["backbone/blocks/attention/qkv/kernel"]
    if width not in WIDTHS:
        raise UserError(
            f"the backbone has width {width}, which no supported DINOv2 or DINOv3 has, so its number of heads is "
            f"unknown; {_GIVE}"
        )
    patch = shapes["backbone/patch_embed/kernel"][0]
    swiglu = "backbone/blocks/mlp/w3/kernel" in shapes
    registers = shapes.get("backbone/registers", (0,))[0]
    if "backbone/position" in shapes:
        image_size = patch * math.isqrt(shapes["backbone/position"][0] - 1)
        vit = ViTConfig(image_size=image_size, position="antialiased_table" if registers else "table")
    else:
        vit = ViTConfig(position="rope", key_bias=False, norm_epsilon=1e-5)
    return dataclasses.replace(
        vit,
        registers=registers,
        patch_size=patch,
        width=width,
        depth=depth,
        heads=width // HEAD_WIDTH,
        mlp_width=shapes[f"backbone/blocks/mlp/{'w3' if swiglu else 'fc2'}/kernel"][1],
        swiglu=swiglu,
        feature_blocks=feature_blocks(depth),
    )


def feature_blocks(depth: int) -> tuple[int, int, int, int]:
    """Return the feature blocks of a transformer of this depth: the blocks whose output becomes a feature level."""
    first, second, third, last = (max(round(depth * share), 1) - 1 for share in _FEATURE_DEPTHS)
    return first, second, third, last


def _head(shapes: Shapes) -> HeadConfig:
    default = HeadConfig()
    encoder, decoder = "head/pixel_decoder/encoder", "head/mask_decoder/layers"
    layers, width, samples = shapes[f"{encoder}/attention/attention_weights/kernel"]
    if (width, samples) != (default.width, LEVELS * default.heads * default.points):
        raise UserError(
            f"the head has width {width} and {samples} attention weights per query, CrossEarth's has {default.width} "
            f"and {LEVELS * default.heads * default.points}, so its number of heads is unknown; {_GIVE}"
        )
    decoder_layers = len({name.split("/")[3] for name in shapes if name.startswith(f"{decoder}/")})
    return HeadConfig(
        encoder_layers=layers,
        encoder_mlp_width=shapes[f"{encoder}/mlp/fc1/kernel"][2],
        decoder_layers=decoder_layers,
        decoder_mlp_width=shapes[f"{decoder}/0/mlp/fc1/kernel"][1],
        queries=shapes.get("head/mask_decoder/queries", (default.queries,))[0],
    )


def check(shapes: Shapes, config: ModelConfig) -> None:
    """Compare parameters with a model, part by part; a part without any parameter is not required.

    Raises:
      UserError: a part lacks a parameter, has one too many, or a parameter has another shape.
    """
    expected = {name: spec.shape for name, spec in SegmentationModel(config).shapes().items()}
    parts = {name.split("/")[0] for name in shapes} & {name.split("/")[0] for name in expected}
    wanted = {name: shape for name, shape in expected.items() if name.split("/")[0] in parts}
    missing = sorted(set(wanted) - set(shapes))
    unused = sorted(name for name in shapes if name.split("/")[0] in parts and name not in wanted)
    wrong = [name for name, shape in wanted.items() if shapes.get(name, shape) != shape]
    if missing or unused:
        kind, names = ("missing", missing) if missing else ("not part of the model", unused)
        raise UserError(
            f"{len(names)} parameters are {kind}: {', '.join(names[:3])}{' …' * (len(names) > 3)}{_hint(names[0])}"
        )
    if wrong:
        name = wrong[0]
        raise UserError(
            f"{name} has shape {shapes[name]}, the model's configuration expects {wanted[name]}{_hint(name)}"
        )


def _hint(name: str) -> str:
    return "; expected weights of the backbone that model.vit describes" if name.startswith("backbone/") else ""
