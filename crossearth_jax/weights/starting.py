"""Parameters that training starts from: a released file, fitted to the run's own model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging

from crossearth_jax.config import ModelConfig, PixelStatistics, UserError
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.weights.files import read_tensors
from crossearth_jax.weights.load import Weights, load_weights
from crossearth_jax.weights.name_rules import Tensors
from crossearth_jax.weights.native import MODEL_FILE, is_native, read_description

CLASS_LAYERS = ("head/mask_decoder/class_head/", "head/classifier/")  # of either head
MASK_TOKEN = "mim/mask_token"


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of every parameter; names are sorted."""

    restored: tuple[str, ...]  # identical to the file
    cropped: tuple[str, ...]  # the mask token of a model for smaller images
    reinitialised: tuple[str, ...]  # the class layer, where the classes are others
    fresh: tuple[str, ...]  # of parts that the file does not have
    unused: tuple[str, ...]  # in the file, without a place in the model


def starting_weights(path: str | os.PathLike[str], config: ModelConfig, class_names: Sequence[str] = ()) -> Tensors:
    """Reads what a file holds for the model of `config`; the log says what is restored and what is not.

    Parameters that the file does not have, and a class layer for other classes, are not among the result: the caller
    keeps their initial values.

    Args:
      path: a released or converted file, or the folder of a run.
      config: the model.
      class_names: what it shall tell apart; () if nobody says, and then the number of classes alone is compared.

    Raises:
      UserError: the file cannot be read, is of another model, or lacks the backbone that its Reins were trained on.
    """
    path = starting_file(path)
    weights = load_weights(path, config=config)
    parts = weights.parts()
    if parts["reins"] and not parts["backbone"]:
        raise UserError(
            f"{os.fspath(path)} holds Reins and head but not the backbone they were trained on; put both into one file "
            "first: python -m crossearth_jax.convert FILE OUT.safetensors --backbone=DINOV2"
        )
    params, report = fit(weights, config, class_names)
    _log(report, weights, config, class_names, os.fspath(path))
    return params


def starting_file(path: str | os.PathLike[str]) -> Path:
    """The file that `train.init_from` stands for: in the folder of a run its `model.safetensors`."""
    return Path(path) / MODEL_FILE if Path(path).is_dir() else Path(path)


def pixel_statistics_of(path: str | os.PathLike[str]) -> PixelStatistics | None:
    """Mean and deviation of the images that the patch embedding of a run's file was made for; None without any."""
    file = starting_file(path)
    if file.suffix != ".safetensors" or not is_native(read_tensors(file).metadata):
        return None
    statistics = read_description(file).model.vit.pixel_statistics
    return None if isinstance(statistics, str) else statistics


def fit(weights: Weights, config: ModelConfig, class_names: Sequence[str] = ()) -> tuple[Tensors, Report]:
    """Chooses what a model takes from released weights.

    Backbone, Reins and head are taken as they are. For other classes the class layer, and nothing else, is left out:
    those of a run are others if their names differ, those of any other file if their number does. A pixel mask token
    larger than the model's (published ones are 1024 x 1024, and the public record does not say what a model for 512
    takes) is cropped to its upper left corner.

    Raises:
      UserError: the mask token is smaller than the model's.
    """
    wanted = SegmentationModel(config).shapes()
    reinitialised = _class_layer(weights, config, class_names)
    params = {k: v for k, v in weights.params.items() if k in wanted and k not in reinitialised}
    cropped = _crop_mask_token(params, wanted)
    report = Report(
        restored=tuple(sorted(set(params) - set(cropped))),
        cropped=cropped,
        reinitialised=reinitialised,
        fresh=tuple(sorted(set(wanted) - set(params) - set(reinitialised))),
        unused=tuple(sorted(set(weights.params) - set(wanted))),
    )
    return params, report


def _class_layer(weights: Weights, config: ModelConfig, class_names: Sequence[str]) -> tuple[str, ...]:
    """Names of the class layer's parameters if the model has other classes than the file."""
    described = weights.description
    # Published files spell the same classes in their own way.
    other_names = described.trained_on and class_names and described.class_names != tuple(class_names)
    if described.model.classes == config.classes and not other_names:
        return ()
    return tuple(sorted(name for name in weights.params if name.startswith(CLASS_LAYERS)))


def _crop_mask_token(params: Tensors, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> tuple[str, ...]:
    """Cuts the mask token to the model's size, in place."""
    if MASK_TOKEN not in params or params[MASK_TOKEN].shape == wanted[MASK_TOKEN].shape:
        return ()
    side = wanted[MASK_TOKEN].shape[0]
    found = len(params[MASK_TOKEN])
    if found < side:
        raise UserError(f"the file's mask token is {found} x {found}, the model's {side} x {side}; set mim.token_size")
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
            "the file has %s, the model %s: the class layer (%s) starts anew, everything else is kept",
            _named(described.model.classes, described.class_names), _named(config.classes, class_names),
            f"{report.reinitialised[0].rpartition("/")[0]}/*",
        )  # fmt: skip
    if report.fresh:
        parts = sorted({name.split("/")[0] for name in report.fresh})
        logging.info("%d parameters of %s are not in the file and start afresh", len(report.fresh), ", ".join(parts))
    if report.unused:
        parts = sorted({name.split("/")[0] for name in report.unused})
        logging.info("%d arrays of %s are in the file and not in the model", len(report.unused), ", ".join(parts))


def _named(count: int, names: Sequence[str]) -> str:
    return f"{count} classes ({', '.join(names)})" if names else f"{count} classes"
