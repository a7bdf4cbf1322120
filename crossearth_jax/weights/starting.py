"""Parameters from which training starts: those of a weights file that fit the model of the run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from absl import logging

from crossearth_jax.config import ModelConfig, PixelStatistics, UserError
from crossearth_jax.models.heads import head_class
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.models.segmentation_head import CLASS_LAYER
from crossearth_jax.runtime.buckets import AnyPath, any_path, check_access
from crossearth_jax.weights import hub
from crossearth_jax.weights.load import Weights, load_weights
from crossearth_jax.weights.name_rules import Tensors
from crossearth_jax.weights.native import MODEL_FILE, Description, is_native, read_description, read_metadata
from crossearth_jax.weights.reference_names import EXTRA

MASK_TOKEN = "mim/mask_token"


@dataclasses.dataclass(frozen=True)
class Report:
    """What happened to each parameter, as sorted names."""

    restored: tuple[str, ...]  # taken from the file unchanged
    cropped: tuple[str, ...]  # taken and cropped: the mask token, if the model's is smaller
    reinitialised: tuple[str, ...]  # not taken: the class layer, if the classes differ
    fresh: tuple[str, ...]  # in the model but not in the file
    unused: tuple[str, ...]  # in the file but not in the model


def starting_weights(path: str | os.PathLike[str], config: ModelConfig, class_names: Sequence[str] = ()) -> Tensors:
    """Read the parameters of the model `config` from a file; the log says which are restored and which are not.

    The result does not contain parameters that are missing in the file, nor a class layer for other classes. The caller
    keeps their initial values.

    Args:
      path: a published or converted weights file, the folder of a run, or an address on a hub.
      config: the model.
      class_names: classes of the model; () if unknown, and then only the number of classes is compared.

    Raises:
      UserError: the file cannot be read, belongs to another model, lacks the backbone on which its Reins were trained,
        or has a backbone that is incomplete without the adapter "soma".
    """
    path = starting_file(path)
    described = _description(path)
    if described and described.model.adapter == "soma" and config.adapter not in ("soma", "lora"):
        raise UserError(
            f"{os.fspath(path)} was trained with model.adapter=soma, its backbone is incomplete without the adapter; "
            f"set model.adapter=soma, not {config.adapter}, or start from the original backbone"
        )
    weights = load_weights(path, config=config)
    parts = weights.parts()
    if parts["reins"] and not parts["backbone"]:
        raise UserError(
            f"{os.fspath(path)} holds Reins and head but not the backbone on which they were trained; combine both in "
            "one file: python -m crossearth_jax.convert FILE OUT.safetensors --backbone=DINOV2"
        )
    params, report = fit(weights, config, class_names)
    _log(report, weights, config, class_names, os.fspath(path))
    return params


def starting_file(path: str | os.PathLike[str]) -> AnyPath:
    """Return the weights file for a value of `train.init_from`.

    For the folder of a run this is its `model.safetensors`, for an address on a hub the file is downloaded.

    Raises:
      UserError: the file cannot be downloaded.
    """
    if hub.is_address(path):
        return hub.download(hub.parse(str(path)))
    found = any_path(path)
    check_access(found)
    return found / MODEL_FILE if found.is_dir() else found


def pixel_statistics_of(path: str | os.PathLike[str]) -> PixelStatistics | None:
    """Return the pixel statistics for which the patch embedding of a run's weights file was trained.

    None if the file was not written by crossearth_jax or has no such statistics.
    """
    described = _description(starting_file(path))
    statistics = described and described.model.vit.pixel_statistics
    return None if isinstance(statistics, str) else statistics


def _description(file: AnyPath) -> Description | None:
    """Return the description in a weights file of ours; None for any other file."""
    if file.suffix != ".safetensors" or not is_native(read_metadata(file)):
        return None
    return read_description(file)


def fit(weights: Weights, config: ModelConfig, class_names: Sequence[str] = ()) -> tuple[Tensors, Report]:
    """Select the parameters that a model takes from weights.

    All parameters of the model that the weights contain are taken unchanged, with two exceptions. The class layer is
    left out if the classes differ: for the weights file of a run if their names or their number differ, for any other
    file if their number differs. A pixel mask token that is larger than the model's is cropped to its upper left
    corner. (Published ones are 1024 x 1024. It is not published how the reference's models for 512 pixels use them.)
    Parameters of a head that start from other tensors of the backbone's file get these (`Head.from_backbone`).

    Raises:
      UserError: the mask token is smaller than the model's.
    """
    wanted = SegmentationModel(config).shapes()
    reinitialised = _class_layer(weights, config, class_names)
    params = {k: v for k, v in weights.params.items() if k in wanted and k not in reinitialised}
    cropped = _crop_mask_token(params, wanted)
    kind = head_class(config)
    for ours, theirs in (kind.from_backbone if kind else {}).items():
        if f"head/{ours}" not in params and EXTRA + theirs in weights.params:
            params[f"head/{ours}"] = np.asarray(weights.params[EXTRA + theirs], np.float32)
    report = Report(
        restored=tuple(sorted(set(params) - set(cropped))),
        cropped=cropped,
        reinitialised=reinitialised,
        fresh=tuple(sorted(set(wanted) - set(params) - set(reinitialised))),
        unused=tuple(sorted(set(weights.params) - set(wanted))),
    )
    return params, report


def _class_layer(weights: Weights, config: ModelConfig, class_names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the class layer's parameters if the model has other classes than the file, else ()."""
    described = weights.description
    # Names are compared for runs only: published files may spell the same classes differently.
    other_names = described.trained_on and class_names and described.class_names != tuple(class_names)
    if described.model.classes == config.classes and not other_names:
        return ()
    return tuple(sorted(name for name in weights.params if CLASS_LAYER.fullmatch(name)))


def _crop_mask_token(params: Tensors, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> tuple[str, ...]:
    """Crop the mask token in `params` to the model's size; return its name if it was cropped."""
    if MASK_TOKEN not in params or params[MASK_TOKEN].shape == wanted[MASK_TOKEN].shape:
        return ()
    side = wanted[MASK_TOKEN].shape[0]
    found = len(params[MASK_TOKEN])
    if found < side:
        raise UserError(
            f"the file's mask token is {found} x {found}, the model's {side} x {side}; set model.mim.token_size to "
            f"{found} or less"
        )
    params[MASK_TOKEN] = np.ascontiguousarray(params[MASK_TOKEN][:side, :side])
    return (MASK_TOKEN,)


def _log(report: Report, weights: Weights, config: ModelConfig, class_names: Sequence[str], path: str) -> None:
    logging.info("starting from %s: %d parameters restored", path, len(report.restored))
    if report.cropped and config.mim:
        found, side = len(weights.params[MASK_TOKEN]), config.mim.token_size
        logging.warning(
            "the pixel mask token of %d x %d is cropped to its upper left %d x %d", found, found, side, side
        )
    if report.reinitialised:
        described = weights.description
        logging.warning(
            "the file has %s, the model %s: the class layer (%s) keeps its initial values, the rest is restored",
            _named(described.model.classes, described.class_names), _named(config.classes, class_names),
            f"{report.reinitialised[0].rpartition("/")[0]}/*",
        )  # fmt: skip
    if report.fresh:
        parts = sorted({name.split("/")[0] for name in report.fresh})
        logging.info(
            "%d parameters of %s are not in the file and keep their initial values", len(report.fresh), ", ".join(parts)
        )
    if report.unused:
        parts = sorted({name.split("/")[0] for name in report.unused})
        logging.info("%d arrays of %s are in the file but not in the model", len(report.unused), ", ".join(parts))


def _named(count: int, names: Sequence[str]) -> str:
    return f"{count} classes ({', '.join(names)})" if names else f"{count} classes"
