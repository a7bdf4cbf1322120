"""Measure numbers that a configuration takes from its training data.

They are measured when training starts and are written to the run's `config.json`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from absl import logging
from jaxtyping import Float, Int

from crossearth_jax.benchmark import IGNORE, Domain
from crossearth_jax.benchmark.registry import source_domains
from crossearth_jax.config import Config, DataConfig, PixelStatistics, UserError
from crossearth_jax.inputs.sources import PreparedSplit
from crossearth_jax.runtime.progress import Progress
from crossearth_jax.weights.starting import pixel_statistics_of

RAREST, COMMONEST = 10.0, 0.1  # largest and smallest class weight by inverse frequency
IMAGES = 256  # largest number of images of each source for the pixel statistics


def measured(config: Config) -> Config:
    """Replace `pixel_statistics="source"` and `class_weights="inverse_frequency"` by measured numbers.

    Raises:
      UserError: a source is not prepared, or has no labels to count.
    """
    domains = source_domains(config.data.source, config.data.data_dir)
    if config.model.vit.pixel_statistics == "source":
        start = config.train.init_from
        # Weights that were trained with other statistics keep them.
        statistics = (start and pixel_statistics_of(start)) or pixel_statistics(domains, config.data)
        logging.info("pixel statistics of %s: mean %s, standard deviation %s", config.data.source, *statistics)
        vit = dataclasses.replace(config.model.vit, pixel_statistics=statistics)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, vit=vit))
    if config.loss is not None and config.loss.class_weights == "inverse_frequency":
        weights = inverse_frequency(np.sum([class_pixels(domain, config.data) for domain in domains], axis=0))
        named = zip(domains[0].classes, weights, strict=True)
        logging.info("class weights: %s", ", ".join(f"{name} {weight:g}" for name, weight in named))
        config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, class_weights=weights))
    return config


def pixel_statistics(domains: Sequence[Domain], data: DataConfig) -> PixelStatistics:
    """Return RGB mean and standard deviation (0..255, at least 1) of the labelled training pixels.

    In domains without labels all pixels count. At most `IMAGES` images of each domain are read, spread evenly over its
    train split.

    Raises:
      UserError: these images have no labelled pixel.
    """
    count, total, squares = 0, np.zeros(3), np.zeros(3)
    for domain in domains:
        split = PreparedSplit(domain.name, "train", data.data_dir)
        for index in np.unique(np.linspace(0, len(split) - 1, IMAGES).astype(int)).tolist():
            example = split[index]
            pixels = example["image"][(example["label"] != IGNORE) | (not domain.classes)].astype(np.float64)
            count, total, squares = count + len(pixels), total + pixels.sum(0), squares + (pixels**2).sum(0)
    if not count:
        raise UserError(
            f"no labelled pixel in up to {IMAGES} images of each train split of {data.source}; check the labels"
        )
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 1.0))
    return _rounded(mean), _rounded(deviation)


def _rounded(values: Float[np.ndarray, 3]) -> tuple[float, float, float]:
    red, green, blue = np.round(values, 1).tolist()
    return red, green, blue


def class_pixels(domain: Domain, data: DataConfig) -> Int[np.ndarray, " k"]:
    """Return the number of training pixels of each class, from the domain's facts or else by counting."""
    if "train" in domain.pixels:
        return np.asarray(domain.pixels["train"])
    split = PreparedSplit(domain.name, "train", data.data_dir)
    progress, counts = Progress(len(split), "images"), np.zeros(256, np.int64)
    for index in range(len(split)):
        counts += np.bincount(split[index]["label"].ravel(), minlength=256)
        progress.advance(note=f"counting the classes of {domain.name}")
    return counts[: len(domain.classes)]


def inverse_frequency(pixels: Int[np.ndarray, " k"]) -> tuple[float, ...]:
    """Return the weight of each class: N / (K n) for n of N labelled pixels, where K classes occur.

    The mean weight over the labelled pixels is then 1. Weights are limited to `COMMONEST` … `RAREST`. A class that does
    not occur has weight 1.

    Raises:
      UserError: there is no labelled pixel.
    """
    if not pixels.sum():
        raise UserError("loss.class_weights=inverse_frequency needs labels, but the train split has no labelled pixel")
    fair = pixels.sum() / np.count_nonzero(pixels)
    weights = np.where(pixels > 0, fair / np.maximum(pixels, 1), 1.0)
    return tuple(np.round(np.clip(weights, COMMONEST, RAREST), 4).tolist())
