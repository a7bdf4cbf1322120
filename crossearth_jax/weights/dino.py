"""DINOv2 and DINOv3 backbones: conversion of the original `.pth` files and of Hugging Face's to the reference's names.

DINOv2 has patches of 14 pixels and 37 x 37 positions. The reference's converter resizes the patch kernel to 16 x 16
and the positions to the patch grid of its image size, bicubically and without rescaling the values. This module does
the same, unless the model has patches of 14 pixels. DINOv3 has patches of 16 pixels and no positions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from einops import rearrange
from jaxtyping import Float

from crossearth_jax.config import UserError
from crossearth_jax.ops.resize import apply_matrices, cubic_kernel, interpolation_matrix
from crossearth_jax.ops.rotary import BASE
from crossearth_jax.weights.name_rules import Tensors

PATCH = 16  # patch size of the backbone that CrossEarth uses
IMAGE_SIZE = 512  # default image size for which positions are resized

_LAYER = r"(?:encoder\.|model\.)?layer\.(\d+)"

# Hugging Face's name (in the published files, or since transformers 5) -> the original name.
_HUGGING_FACE = (
    (r"embeddings\.cls_token", r"cls_token"),
    (r"embeddings\.mask_token", r"mask_token"),
    (r"embeddings\.register_tokens", r"register_tokens"),
    (r"embeddings\.position_embeddings", r"pos_embed"),
    (r"embeddings\.patch_embeddings(?:\.projection)?\.(weight|bias)", r"patch_embed.proj.\1"),
    (rf"{_LAYER}\.(norm[12])\.(\w+)", r"blocks.\1.\2.\3"),
    (rf"{_LAYER}\.attention\.(?:output\.dense|o_proj)\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (rf"{_LAYER}\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (rf"{_LAYER}\.mlp\.(fc[12])\.(\w+)", r"blocks.\1.mlp.\2.\3"),
    (rf"{_LAYER}\.mlp\.weights_in\.(\w+)", r"blocks.\1.mlp.w12.\2"),
    (rf"{_LAYER}\.mlp\.(?:weights_out|down_proj)\.(\w+)", r"blocks.\1.mlp.w3.\2"),
    (r"layernorm\.(\w+)", r"norm.\1"),
    (r"storage_tokens", r"register_tokens"),  # the registers' name in DINOv3's original files
)
# Linear layers that are separate in Hugging Face's or DINOv3's files, in the order in which they are packed.
_PACKED = (
    ("attn.qkv", ("attention.attention.query", "attention.attention.key", "attention.attention.value")),
    ("attn.qkv", ("attention.q_proj", "attention.k_proj", "attention.v_proj")),
    ("mlp.w12", ("mlp.gate_proj", "mlp.up_proj")),
    ("mlp.w12", ("mlp.w1", "mlp.w2")),
)


def is_dino(tensors: Mapping[str, np.ndarray]) -> bool:
    """Return whether these are the tensors of a DINO backbone, under original names or Hugging Face's."""
    pattern = r"(.+\.)?(patch_embed\.proj|patch_embeddings(\.projection)?)\.weight"
    return any(re.fullmatch(pattern, name) for name in tensors)


def to_backbone(
    tensors: Mapping[str, np.ndarray], image_size: int | None = None, patch_size: int | None = None
) -> Tensors:
    """Return the tensors under the reference's names (`backbone.…`).

    Args:
      tensors: of an original DINOv2 or DINOv3 file, of a file of Hugging Face, or of an output of the reference's
        converter.
      image_size: side of the square images for which DINOv2's positions are resized. None means the image size of the
        file if the patches are not resized, else 512.
      patch_size: side of the patches of the model; None means 16.

    Raises:
      UserError: the model is neither a DINOv2 nor a DINOv3, has patches of another size that cannot be resized, or was
        already converted for another image size.
    """
    tensors, patch_size = original_names(tensors), patch_size or PATCH
    kernel = _need(tensors, "patch_embed.proj.weight")
    if "register_tokens" in tensors and "pos_embed" not in tensors:
        _check_dinov3(tensors, patch_size)
        return {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    positions = _need(tensors, "pos_embed")
    if kernel.ndim != 4 or positions.ndim != 3 or math.isqrt(positions.shape[1] - 1) ** 2 != positions.shape[1] - 1:
        raise UserError(
            f"patch_embed.proj.weight {kernel.shape} and pos_embed {positions.shape} do not have DINOv2's shapes"
        )
    if kernel.shape[-1] == PATCH:
        if patch_size != PATCH:
            raise UserError(
                f"this backbone has patches of {PATCH} pixels, expected {patch_size}; use the original file"
            )
        check_converted(positions, kernel, image_size)
    else:
        resized = kernel.shape[-1] != patch_size
        old_side = math.isqrt(positions.shape[1] - 1)
        image_size = image_size or (IMAGE_SIZE if resized else old_side * patch_size)
        if image_size < patch_size or image_size % patch_size:
            raise UserError(f"the image size is {image_size}, expected a multiple of the patch size, {patch_size}")
        if resized:
            logging.info("resizing the patch kernel %s -> %d x %d", kernel.shape[2:], patch_size, patch_size)
            tensors["patch_embed.proj.weight"] = resize_kernel(np.asarray(kernel, np.float32), patch_size)
        if (side := image_size // patch_size) != old_side:
            logging.info("resizing the positions %d x %d -> %d x %d", old_side, old_side, side, side)
            antialias = "register_tokens" in tensors
            tensors["pos_embed"] = resize_positions(np.asarray(positions, np.float32), side, antialias)
    return {f"backbone.{name}": tensor for name, tensor in tensors.items()}


def _check_dinov3(tensors: Mapping[str, np.ndarray], patch_size: int) -> None:
    """Check what the network cannot express; the shapes of the parameters are checked elsewhere.

    Raises:
      UserError: patches have another size, or the periods of the rotary embeddings are not the published ones.
    """
    kernel = tensors["patch_embed.proj.weight"]
    if kernel.shape[-1] != patch_size:
        raise UserError(
            f"this DINOv3 has patches of {kernel.shape[-1]} pixels, expected {patch_size}; set model.vit.patch_size"
        )
    periods = tensors.get("rope_embed.periods")
    # The original files hold them in bfloat16.
    if periods is not None and not np.allclose(periods, BASE ** (np.arange(periods.size) / periods.size), rtol=1e-2):
        raise UserError(f"rope_embed.periods are {periods}, expected those of DINOv3, from 1 to nearly {BASE:g}")


def original_names(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Return the tensors under the names of the original repository.

    Queries, keys and values are packed into one tensor, and blocks are numbered without chunks. Registers have the name
    of DINOv2. A missing bias of keys, as in Hugging Face's DINOv3, becomes zero.
    """
    matches = (re.fullmatch(r"(.*?)(embeddings\.)?cls_token", name) for name in tensors)
    prefix = next((match[1] for match in matches if match), "")
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if "embeddings.register_tokens" in tensors and "embeddings.position_embeddings" not in tensors:
        tensors = _complete_dinov3(tensors)
    names: Tensors = {}
    for name, tensor in tensors.items():
        packed, parts = _packed(name)
        if parts:
            names.setdefault(packed, np.concatenate([_need(tensors, part) for part in parts]))
        else:
            names[_original_name(name)] = tensor
    return names


def _complete_dinov3(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Rename the layers of the plain MLP of Hugging Face's DINOv3 as in DINOv2, and add a zero bias of keys."""
    gated = any(".mlp.gate_proj." in name for name in tensors)
    completed: Tensors = {}
    for name, tensor in tensors.items():
        if not gated:
            name = name.replace(".mlp.up_proj.", ".mlp.fc1.").replace(".mlp.down_proj.", ".mlp.fc2.")
        completed[name] = tensor
        if name.endswith(".attention.q_proj.bias"):
            completed.setdefault(name.replace(".q_proj.", ".k_proj."), np.zeros_like(tensor))
    return completed


def _packed(name: str) -> tuple[str, list[str]]:
    """Return the original name of the packed tensor that contains `name`, and the names of its parts in order.

    ("", []) if `name` is not part of a packed tensor.
    """
    match = re.fullmatch(rf"({_LAYER}|blocks\.(\d+))\.(.+)\.(\w+)", name)
    for layer, parts in _PACKED:
        if match and match[4] in parts:
            siblings = [f"{match[1]}.{part}.{match[5]}" for part in parts]
            return f"blocks.{match[2] or match[3]}.{layer}.{match[5]}", siblings
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


def resize_positions(
    table: Float[np.ndarray, "1 n c"], side: int, antialias: bool = False
) -> Float[np.ndarray, "1 m c"]:
    """Resize the patch positions of a position table to a grid of `side` x `side`, bicubically.

    The position of the class token is unchanged. DINOv2 with registers resizes with antialiasing.
    """
    old = math.isqrt(table.shape[1] - 1)
    grid = jnp.asarray(rearrange(table[0, 1:], "(h w) c -> h w c", h=old))
    if antialias:
        resized = jax.image.resize(grid, (side, side, grid.shape[-1]), "cubic")
    else:
        matrix = interpolation_matrix(old, side, kernel=cubic_kernel)
        resized = apply_matrices(grid, matrix, matrix)
    return np.concatenate([table[:, :1], rearrange(np.asarray(resized), "h w c -> 1 (h w) c")], axis=1)


def check_converted(
    positions: Float[np.ndarray, "1 n c"], kernel: Float[np.ndarray, "o i h w"], image_size: int | None
) -> None:
    """Check that an already converted backbone belongs to the requested image size; its positions are not resized.

    Raises:
      UserError: it belongs to another image size.
    """
    found = kernel.shape[-1] * math.isqrt(positions.shape[1] - 1)
    if image_size is not None and image_size != found:
        raise UserError(
            f"this backbone was converted for images of {found} x {found}, not {image_size} x {image_size}; set the "
            f"image size to {found} (positions are interpolated for images of other sizes), or use the original file"
        )


def _need(tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in tensors:
        raise UserError(f"{name} is missing; expected a complete DINOv2 or DINOv3 backbone")
    return tensors[name]
