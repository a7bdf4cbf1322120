"""Our own weights files: safetensors with parameters under our names, and a description of the model in JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from crossearth_jax.config import ModelConfig, UserError, from_config_dict, to_config_dict
from crossearth_jax.ops.normalization import MEAN, STD
from crossearth_jax.runtime.atomic import replacing
from crossearth_jax.runtime.buckets import any_path, bucket_errors

MODEL_FILE = "model.safetensors"  # the weights file in the folder of a run
FORMAT = "crossearth_jax"  # key of the JSON in the metadata of a file
VERSION = 1

Palette = tuple[tuple[int, int, int], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """Statistics of the windows of training images, to which `inference.familiarity` compares those of a scene."""

    size: int  # components of the descriptor of a window
    rows: str  # base64 of little-endian float32 rows of `size` numbers: mean, scale, directions
    limit: float  # distance above which a window is unfamiliar


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """Description of a set of parameters: the model, its classes and its input."""

    model: ModelConfig
    class_names: tuple[str, ...] = ()  # in the order of the scores; () if unknown
    palette: Palette = ()  # RGB per class; () if unknown
    source: str = ""  # name of the file from which the parameters were read
    window: int | None = None  # side of the sliding window, in pixels; None: the model's image size
    stride: int | None = None  # distance of windows, in pixels; None: two thirds of the window
    bands: tuple[str, ...] = ()  # names of the three input channels; () if unknown
    gsd: float | None = None  # ground resolution of the training images, in metres per pixel; None if it varies
    trained_on: str = ""  # source domain; "" if the parameters are not from a run
    style_targets: tuple[str, ...] = ()  # target domains whose images are in the style statistics
    step: int | None = None  # optimizer steps of a run
    selection: str = ""  # how the run selected its checkpoint: the value of `evaluate.select`
    temperature: float | None = None  # calibrates the probabilities of the scores; None: not fitted
    reference: Reference | None = None  # None: not computed


def digest(params: Mapping[str, Any], prefix: str = "") -> str:
    """Return the SHA-256 of names, shapes, types and bytes of the parameters below `prefix`; "" if there are none."""
    names = sorted(name for name in params if name.startswith(prefix))
    total = hashlib.sha256()
    for name in names:
        value = np.asarray(params[name])
        total.update(f"{name} {value.shape} {value.dtype}\n".encode())
        total.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    return total.hexdigest() if names else ""


def save_native(path: str | os.PathLike[str], params: Mapping[str, Any], description: Description) -> None:
    """Write parameters and their description to a file of ours, atomically.

    Raises:
      UserError: the file cannot be written.
    """
    save_tensors(path, params, _metadata(params, description))


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Write arrays to a safetensors file, atomically.

    Raises:
      UserError: the file cannot be written.
    """
    # The library ignores strides, so views are copied to contiguous memory. The reshape restores 0-dimensional arrays.
    arrays = {name: np.ascontiguousarray(value).reshape(np.shape(value)) for name, value in tensors.items()}
    with replacing(path) as temporary:
        try:
            safetensors.numpy.save_file(arrays, temporary, dict(metadata) or None)
        except safetensors.SafetensorError as error:  # raised for a full disk, for example
            raise OSError(str(error)) from None


def _metadata(params: Mapping[str, Any], description: Description) -> dict[str, str]:
    """Return the metadata of a file, as a single entry.

    safetensors writes several entries in arbitrary order, but equal weights should give identical files.
    """
    content = {
        "version": VERSION,
        "model": json.loads(to_config_dict(description.model).to_json()),
        "class_names": description.class_names,
        "palette": description.palette,
        "normalization": {"mean": MEAN.tolist(), "std": STD.tolist(), "order": "RGB"},
        "source": description.source,
        "window": description.window,
        "stride": description.stride,
        "bands": description.bands,
        "gsd": description.gsd,
        "trained_on": description.trained_on,
        "style_targets": description.style_targets,
        "step": description.step,
        "selection": description.selection,
        "temperature": description.temperature,
        "reference": description.reference and dataclasses.asdict(description.reference),
        "backbone_sha256": digest(params, "backbone/"),
    }
    return {FORMAT: json.dumps(content, sort_keys=True)}


def read_description(path: str | os.PathLike[str]) -> Description:
    """Read the description in the header of one of our files, without its tensors.

    Raises:
      UserError: it is not a safetensors file of ours, or it is damaged.
    """
    metadata = read_metadata(path)
    if not is_native(metadata):
        raise UserError(
            f"{os.fspath(path)} was not written by crossearth_jax; convert it with python -m crossearth_jax.convert"
        )
    return describe(metadata)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the metadata in the header of a safetensors file; of a file in a bucket only the header is read.

    Raises:
      UserError: it is not a safetensors file, or it is damaged.
    """
    found = any_path(path)
    try:
        if isinstance(found, Path):
            with safetensors.safe_open(found, "numpy") as file:  # pyright: ignore[reportPrivateImportUsage]
                return file.metadata() or {}
        with bucket_errors(f"cannot read {found}"), found.open("rb") as file:
            header = file.read(int.from_bytes(file.read(8), "little"))
        return json.loads(header).get("__metadata__", {})
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"cannot read {os.fspath(path)}: {error}; expected a complete safetensors file") from None


def is_native(metadata: Mapping[str, Any]) -> bool:
    """Return whether a safetensors file with this metadata is one of ours."""
    return FORMAT in metadata


def _reference(size: int, rows: str, limit: float) -> Reference:
    return Reference(size=int(size), rows=str(rows), limit=float(limit))


def describe(metadata: Mapping[str, Any]) -> Description:
    """Parse the description in the metadata of one of our files.

    Raises:
      UserError: it has a newer format version, or is damaged.
    """
    try:
        content = json.loads(metadata[FORMAT])
        if content["version"] > VERSION:
            raise UserError(
                f"the file has format version {content['version']}, expected at most {VERSION}; update crossearth_jax"
            )
        return Description(
            model=from_config_dict(content["model"], ModelConfig, "model"),
            class_names=tuple(map(str, content["class_names"])),
            palette=tuple((int(r), int(g), int(b)) for r, g, b in content["palette"]),
            source=str(content["source"]),
            window=content["window"] and int(content["window"]),
            stride=content["stride"] and int(content["stride"]),
            # Files of earlier versions of the program lack the following fields.
            bands=tuple(map(str, content.get("bands", ()))),
            gsd=content.get("gsd") and float(content["gsd"]),
            trained_on=str(content.get("trained_on", "")),
            style_targets=tuple(map(str, content.get("style_targets", ()))),
            step=content.get("step") and int(content["step"]),
            selection=str(content.get("selection", "")),
            temperature=content.get("temperature") and float(content["temperature"]),
            reference=content.get("reference") and _reference(**content["reference"]),
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"the description in the file is damaged ({error!r}); convert the weights again") from None
