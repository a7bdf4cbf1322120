"""DINOv2 backbones: conversion of the original `.pth` files and of Hugging Face's to the reference's form.

Both have a patch size of 14 and 37 x 37 positions. The reference's converter resizes the patch kernel to 16 x 16 and
the positions to the patch grid of its image size, bicubically and without rescaling the values. This module does the
same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from absl import logging
from einops import rearrange
from jaxtyping import Float

from crossearth_jax.config import UserError
from crossearth_jax.ops.resize import apply_matrices, cubic_kernel, interpolation_matrix
from crossearth_jax.weights.name_rules import Tensors

PATCH = 16  # patch size of the backbone that CrossEarth uses
IMAGE_SIZE = 512  # default image size for which positions are resized

_LAYER = r"encoder\.layer\.(\d+)"

# Hugging Face's name (in the published files, or since transformers 5) -> the original name.
_HUGGING_FACE = (
    (r"embeddings\.cls_token", r"cls_token"),
    (r"embeddings\.mask_token", r"mask_token"),
    (r"embeddings\.register_tokens", r"register_tokens"),
    (r"embeddings\.position_embeddings", r"pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
    (rf"{_LAYER}\.(norm[12])\.(\w+)", r"blocks.\1.\2.\3"),
    (rf"{_LAYER}\.attention\.(?:output\.dense|o_proj)\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (rf"{_LAYER}\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (rf"{_LAYER}\.mlp\.(fc[12])\.(\w+)", r"blocks.\1.mlp.\2.\3"),
    (rf"{_LAYER}\.mlp\.weights_in\.(\w+)", r"blocks.\1.mlp.w12.\2"),
    (rf"{_LAYER}\.mlp\.(?:weights_out|down_proj)\.(\w+)", r"blocks.\1.mlp.w3.\2"),
    (r"layernorm\.(\w+)", r"norm.\1"),
)
# Linear layers that are separate in Hugging Face's files, in the order in which the original packs their outputs.
_PACKED = (
    ("attn.qkv", ("attention.attention.query", "attention.attention.key", "attention.attention.value")),
    ("attn.qkv", ("attention.q_proj", "attention.k_proj", "attention.v_proj")),
    ("mlp.w12", ("mlp.gate_proj", "mlp.up_proj")),
)


def is_dinov2(tensors: Mapping[str, np.ndarray]) -> bool:
    """Return whether these are the tensors of a DINOv2 backbone, under original names or Hugging Face's."""
    return any(re.fullmatch(r"(.+\.)?(patch_embed\.proj|patch_embeddings\.projection)\.weight", n) for n in tensors)


def to_backbone(tensors: Mapping[str, np.ndarray], image_size: int | None = None) -> Tensors:
    """Return the tensors under the reference's names (`backbone.…`), for patches of 16 x 16 pixels.

    Args:
      tensors: of an original DINOv2 file, of a file of Hugging Face, or of an output of the reference's converter.
      image_size: side of the square images for which positions are resized; None means 512, or the image size of an
        already converted file.

    Raises:
      UserError: the model has registers, is not a DINOv2, or was already converted for another image size.
    """
    tensors = original_names(tensors)
    if "register_tokens" in tensors:
        raise UserError(
            "this DINOv2 has registers (register_tokens), expected one without; use the DINOv2 file without registers"
        )
    kernel, positions = (_need(tensors, name) for name in ("patch_embed.proj.weight", "pos_embed"))
    if kernel.ndim != 4 or positions.ndim != 3 or math.isqrt(positions.shape[1] - 1) ** 2 != positions.shape[1] - 1:
        raise UserError(
            f"patch_embed.proj.weight {kernel.shape} and pos_embed {positions.shape} do not have DINOv2's shapes"
        )
    if kernel.shape[-1] == PATCH:
        check_converted(positions, image_size)
    else:
        image_size = image_size or IMAGE_SIZE
        if image_size < PATCH or image_size % PATCH:
            raise UserError(f"the image size is {image_size}, expected a multiple of the patch size, {PATCH}")
        side = image_size // PATCH
        logging.info("resizing the patch kernel %s -> 16 x 16 and positions to %d x %d", kernel.shape[2:], side, side)
        tensors |= {
            "patch_embed.proj.weight": resize_kernel(np.asarray(kernel, np.float32), PATCH),
            "pos_embed": resize_positions(np.asarray(positions, np.float32), side),
        }
    return {f"backbone.{name}": tensor for name, tensor in tensors.items()}


def original_names(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Return the tensors under the names of the original repository.

    Queries, keys and values are packed into one tensor, and blocks are numbered without chunks.
    """
    matches = (re.fullmatch(r"(.*?)(embeddings\.)?cls_token", name) for name in tensors)
    prefix = next((match[1] for match in matches if match), "")
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    names: Tensors = {}
    for name, tensor in tensors.items():
        packed, parts = _packed(name)
        if parts:
            names.setdefault(packed, np.concatenate([_need(tensors, part) for part in parts]))
        else:
            names[_original_name(name)] = tensor
    return names


def _packed(name: str) -> tuple[str, list[str]]:
    """Return the original name of the packed tensor that contains `name`, and the names of its parts in order.

    ("", []) if `name` is not part of a packed tensor.
    """
    match = re.fullmatch(rf"({_LAYER})\.(.+)\.(\w+)", name)
    for layer, parts in _PACKED:
        if match and match[3] in parts:
            siblings = [f"{match[1]}.{part}.{match[4]}" for part in parts]
            return f"blocks.{match[2]}.{layer}.{match[4]}", siblings
    return "", []


def _original_name(name: str) -> str:
    if match := re.fullmatch(r"blocks\.\d+\.(\d+\..+)", name):  # number of a chunk of blocks, then of the block
        return f"blocks.{match[1]}"
    for pattern, replacement in _HUGGING_FACE:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return name


def resize_kernel(kernel: Float[np.ndarray, "o i h w"], size: int) -> Float[np.ndarray, "o i n m"]:
    """Resize the kernel of the patch embedding to `size` x `size`, bicubically."""
    rows, columns = (interpolation_matrix(n, size, kernel=cubic_kernel) for n in kernel.shape[2:])
    return np.asarray(apply_matrices(jnp.asarray(kernel), rows, columns, axes=(-2, -1)))


def resize_positions(table: Float[np.ndarray, "1 n c"], side: int) -> Float[np.ndarray, "1 m c"]:
    """Resize the patch positions of a position table to a grid of `side` x `side`, bicubically.

    The position of the class token is unchanged.
    """
    old = math.isqrt(table.shape[1] - 1)
    matrix = interpolation_matrix(old, side, kernel=cubic_kernel)
    grid = rearrange(table[0, 1:], "(h w) c -> h w c", h=old)
    patches = rearrange(np.asarray(apply_matrices(jnp.asarray(grid), matrix, matrix)), "h w c -> 1 (h w) c")
    return np.concatenate([table[:, :1], patches], axis=1)


def check_converted(positions: Float[np.ndarray, "1 n c"], image_size: int | None) -> None:
    """Check that an already converted backbone belongs to the requested image size; its positions are not resized.

    Raises:
      UserError: it belongs to another image size.
    """
    found = PATCH * math.isqrt(positions.shape[1] - 1)
    if image_size is not None and image_size != found:
        raise UserError(
            f"this backbone was converted for images of {found} x {found}, not {image_size} x {image_size}; set the "
            f"image size to {found} (positions are interpolated for images of other sizes), or use the original file"
        )


def _need(tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in tensors:
        raise UserError(f"{name} is missing; expected a complete DINOv2 backbone")
    return tensors[name]
