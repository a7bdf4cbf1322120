"""Loading of weights files: CrossEarth, DINOv2 and DINOv3 `.pth`, safetensors of these, and our own files."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeGuard

from absl import logging

from crossearth_jax.config import ModelConfig, UserError
from crossearth_jax.models.segmentation_head import CLASS_LAYER
from crossearth_jax.weights import dino, infer, native, reference_names
from crossearth_jax.weights.files import TensorFile, read_tensors
from crossearth_jax.weights.name_rules import Tensors
from crossearth_jax.weights.native import Description, Palette


@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters under our names, in host memory, and their description."""

    params: Tensors
    description: Description

    def parts(self) -> Counter[str]:
        """Count the arrays per part: "backbone", "reins", "head", "mim", "gse", and "extra" (kept, but not used)."""
        return Counter(name.split("/")[0] for name in self.params)


def load_weights(
    path: str | os.PathLike[str],
    *,
    config: ModelConfig | None = None,
    backbone: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    patch_size: int | None = None,
    ignore: str | None = None,
) -> Weights:
    """Read a weights file of any kind and check it against the configuration of its model.

    Args:
      path: a CrossEarth checkpoint, a DINOv2 or DINOv3 backbone (original names or Hugging Face's), or a file of ours.
      config: configuration of the model. None: the description in a file of ours, else inferred from the shapes, which
        works for all released sizes. The number of classes and the size of the mask token always come from the file.
      backbone: file with the frozen backbone, for checkpoints that hold only Reins and head.
      image_size: side of the images for which the positions of an original DINOv2 are resized. None: that of `config`,
        or else 512 for patches of 16 pixels and 518 for patches of 14.
      patch_size: side of the patches to which the patch kernel of an original DINOv2 is resized. None: that of
        `config`, or else 16. With 14 it is not resized.
      ignore: regular expression of names in the file to leave out. Other unknown names are an error.

    Raises:
      UserError: the file cannot be read, is incomplete, holds unknown tensors, or does not fit the model.
    """
    name = pathlib.Path(path).name
    file = read_tensors(path)
    size = sum(tensor.nbytes for tensor in file.tensors.values())
    logging.info("%s: %d tensors, %s bytes", name, len(file.tensors), f"{size:,}")
    if ignore is not None:
        left_out = {key for key in file.tensors if re.fullmatch(ignore, key)}
        logging.warning("%d tensors are left out (ignore): %s", len(left_out), ", ".join(sorted(left_out)[:10]))
        file = dataclasses.replace(file, tensors={k: v for k, v in file.tensors.items() if k not in left_out})
    try:
        image_size = config.vit.image_size if config and not image_size else image_size
        patch_size = config.vit.patch_size if config and not patch_size else patch_size
        params = _ours(file, image_size, patch_size)
        if backbone is not None:
            params = _with_backbone(params, backbone, image_size, patch_size)
        if native.is_native(file.metadata):
            described = native.describe(file.metadata)
            config = config or described.model
        else:
            config = config or infer.infer_config(infer.shapes_of(params))
            described = Description(model=config, **_classes(file.metadata, params), source=name)
        config = _as_in_file(params, config)
        infer.check(infer.shapes_of(params), config)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    weights = Weights(params, dataclasses.replace(described, model=config))
    _log(weights, name)
    return weights


def _ours(file: TensorFile, image_size: int | None, patch_size: int | None) -> Tensors:
    if native.is_native(file.metadata):
        return dict(file.tensors)
    tensors = reference_names.canonical(file.tensors)
    if any(name.startswith(("decode_head.", "backbone.reins.")) for name in tensors):
        if image_size is not None and {"backbone.pos_embed", "backbone.patch_embed.proj.weight"} <= tensors.keys():
            positions, kernel = (tensors[f"backbone.{name}"] for name in ("pos_embed", "patch_embed.proj.weight"))
            dino.check_converted(positions, kernel, image_size)
    elif dino.is_dino(tensors):
        tensors = dino.to_backbone(tensors, image_size, patch_size)
    return reference_names.from_reference(tensors)


def _with_backbone(
    params: Tensors, backbone: str | os.PathLike[str], image_size: int | None, patch_size: int | None
) -> Tensors:
    """Add the frozen backbone of another file."""
    if any(name.startswith("backbone/") for name in params):
        raise UserError("it already has a backbone; leave out the separate backbone file")
    kept = ("backbone/", f"{reference_names.EXTRA}backbone.")
    tensors = _ours(read_tensors(backbone), image_size, patch_size)
    other = {k: v for k, v in tensors.items() if k.startswith(kept)}
    if not other:
        raise UserError(f"the backbone file {os.fspath(backbone)} holds no backbone")
    return other | params


def _classes(meta: Mapping[str, Any], params: Tensors) -> dict[str, Any]:
    """Return the class names and colours in the metadata of a torch checkpoint.

    Each of the two is empty if its number of entries is not the head's number of classes.
    """
    found = meta.get("dataset_meta")
    found = found if isinstance(found, dict) else meta
    classes = len(params.get("head/mask_decoder/class_head/bias", [])) - 1
    names = found.get("classes", found.get("CLASSES"))
    palette = found.get("palette", found.get("PALETTE"))
    colours: Palette = ()
    if _is_list(palette, classes) and all(
        _is_list(colour, 3) and all(type(x) is int and 0 <= x < 256 for x in colour) for colour in palette
    ):
        colours = tuple((r, g, b) for r, g, b in palette)
    return {"class_names": tuple(map(str, names)) if _is_list(names, classes) else (), "palette": colours}


def _is_list(value: Any, length: int) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    return isinstance(value, list | tuple) and len(value) == length


def _as_in_file(params: Tensors, config: ModelConfig) -> ModelConfig:
    """Return the configuration with the file's number of classes and size of the mask token."""
    for name, value in params.items():
        if (match := CLASS_LAYER.fullmatch(name)) and match["array"] == "bias" and value.ndim == 1:
            no_object = match["layer"] == "class_head"
            config = dataclasses.replace(config, classes=len(value) - no_object)
    token = params.get("mim/mask_token")
    if config.mim is not None and token is not None:
        config = dataclasses.replace(config, mim=dataclasses.replace(config.mim, token_size=len(token)))
    return config


def _log(weights: Weights, name: str) -> None:
    counts = ", ".join(f"{part} {count}" for part, count in sorted(weights.parts().items()))
    logging.info("%s: %d arrays (%s), none missing, none unknown", name, len(weights.params), counts)
    if weights.parts()["gse"]:
        logging.info("%s: its semantic extractor (gse/…) is read but not used, as in the public code", name)
    carried = [
        key.removeprefix(reference_names.EXTRA) for key in weights.params if key.startswith(reference_names.EXTRA)
    ]
    for pattern, reason in reference_names.CARRIED:
        if names := [key for key in carried if re.fullmatch(pattern, key)]:
            logging.info("%s: %d arrays are kept but not used (%s, e.g. %s)", name, len(names), reason, names[0])
