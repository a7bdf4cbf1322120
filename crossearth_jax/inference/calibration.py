"""What is measured on the source after training and stored in the weights file: a temperature and a reference.

The temperature calibrates the probabilities of the model (Guo et al. 2017, arXiv 1706.04599; `ops.probabilities`
defines them). The reference describes the training images (`inference.familiarity`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np
import scipy.optimize
from absl import logging
from jaxtyping import Float, Int, UInt8

from crossearth_jax.benchmark import Domain
from crossearth_jax.benchmark.registry import source_domains
from crossearth_jax.config import Config
from crossearth_jax.inference import resizing
from crossearth_jax.inference.familiarity import fit_reference
from crossearth_jax.inference.segmentor import Segmentor
from crossearth_jax.inference.windows import SlidingWindows
from crossearth_jax.inputs.sources import PreparedSplit
from crossearth_jax.ops.probabilities import log_ratios
from crossearth_jax.runtime.buckets import AnyPath
from crossearth_jax.weights.files import read_tensors
from crossearth_jax.weights.native import describe, save_native

HOLDOUTS = ("validation", "val")  # names of the splits of a source domain that may be used to choose something
IMAGES = 64  # largest number of images of a split that are scored
PIXELS = 4096  # largest number of pixels of an image on which the temperature is fitted
TEMPERATURES = 0.05, 20.0  # limits of the fit


def fit_temperature(ratios: Float[np.ndarray, "k n"], labels: Int[np.ndarray, " n"]) -> float:
    """Return the temperature with the smallest negative log-likelihood of the labels, within `TEMPERATURES`.

    Args:
      ratios: `log_ratios` of the scores of n pixels.
      labels: their true classes.
    """
    ratios = ratios.astype(np.float64)
    own = ratios[labels, np.arange(len(labels))].mean()

    def loss(log_temperature: float) -> float:
        inverse = np.exp(-log_temperature)
        return float(np.log(np.exp(ratios * inverse).sum(0)).mean() - own * inverse)

    found = scipy.optimize.minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def scored_temperatures(temperature: float | None) -> tuple[float, ...]:
    """Return the temperatures whose calibration error is reported: 1, and that of the model if it has one."""
    return (1.0,) if temperature is None else (1.0, temperature)


def calibrated(config: Config, weights_file: AnyPath, segmentor: Segmentor) -> Segmentor:
    """Return a run's model with its temperature and its reference (`inference.familiarity`).

    If one of them is missing, both are computed from the hold-out of the source and stored in the weights file. All
    processes of a run call it together; the first process writes the file. The model is returned as it is if the source
    has no hold-out (see `source_holdouts`), or if the model was not trained on the source of the configuration.
    """
    described = segmentor.description
    complete = described.temperature is not None and described.reference is not None
    if complete or described.trained_on != config.data.source:
        return segmentor
    splits = source_holdouts(config)
    if splits is None:
        return segmentor
    held_out, training = list[jax.Array](), list[jax.Array]()
    batch_size = config.evaluate.batch_size
    windows = segmentor.sliding_windows(batch_size=batch_size, observe=held_out.append)
    temperature = source_temperature(config, splits, windows)
    windows = segmentor.sliding_windows(batch_size=batch_size, observe=training.append)
    for domain, _ in splits:
        for _ in _scored(windows, domain, "train", config.data.data_dir, IMAGES // len(splits)):
            pass  # only the descriptors are needed
    reference = fit_reference(*(np.concatenate(jax.device_get(batches)) for batches in (training, held_out)))
    measured = {"temperature": temperature, "reference": reference}
    if jax.process_index() == 0:
        file = read_tensors(weights_file)
        save_native(weights_file, file.tensors, dataclasses.replace(describe(file.metadata), **measured))
    return dataclasses.replace(segmentor, description=dataclasses.replace(described, **measured))


def source_holdouts(config: Config) -> list[tuple[Domain, str]] | None:
    """Return each source domain with its hold-out split; None if a source domain has no such split.

    The split that evaluation scores is never used.
    """
    domains = source_domains(config.data.source, config.data.data_dir)
    found = [[s for s in HOLDOUTS if s in domain.counts and s != domain.eval_split] for domain in domains]
    if without := [domain.name for domain, splits in zip(domains, found, strict=True) if not splits]:
        logging.info(
            "no temperature is fitted, and maps will not warn of unfamiliar ground: %s has no split %s besides the one "
            "that is scored; probabilities are the shares of the scores",
            ", ".join(without),
            " or ".join(HOLDOUTS),
        )
        return None
    return [(domain, splits[0]) for domain, splits in zip(domains, found, strict=True)]


def source_temperature(config: Config, splits: Sequence[tuple[Domain, str]], windows: SlidingWindows) -> float:
    """Return the temperature fitted on the hold-out of the source, as returned by `source_holdouts`.

    The images are spread evenly over the split, and the pixels are drawn at random with a fixed seed, so all processes
    of a run find the same number.
    """
    random = np.random.default_rng(0)
    ratios, labels = zip(
        *(
            _drawn(random, scores, label, len(domain.classes))
            for domain, split in splits
            for scores, label in _scored(windows, domain, split, config.data.data_dir, IMAGES // len(splits))
        ),
        strict=True,
    )
    temperature = fit_temperature(np.concatenate(ratios, axis=1), np.concatenate(labels))
    logging.info("temperature %.3f, fitted on the hold-out of %s", temperature, config.data.source)
    return temperature


def _scored(
    windows: SlidingWindows, domain: Domain, split: str, data_dir: str, count: int
) -> Iterator[tuple[Float[np.ndarray, "h w k"], UInt8[np.ndarray, "_ _"]]]:
    """Yield scores and label of up to `count` images."""
    source = PreparedSplit(domain.name, split, data_dir)
    numbers = np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)).tolist()
    images = (resizing.resized_image(source[number]["image"], domain.resize) for number in numbers)
    for position, scores in windows.scores(images):
        yield scores, source[numbers[position]]["label"]


def _drawn(
    random: np.random.Generator, scores: Float[np.ndarray, "h w k"], label: UInt8[np.ndarray, "_ _"], classes: int
) -> tuple[Float[np.ndarray, "k n"], Int[np.ndarray, " n"]]:
    """Return the log ratios and the classes of up to `PIXELS` labelled pixels; the label is sampled at score pixels."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(scores.shape[:2], label.shape, strict=True)
    )
    sampled = label[rows][:, columns]
    chosen = np.flatnonzero(sampled < classes)
    chosen = random.permutation(chosen)[:PIXELS]
    return log_ratios(scores.reshape(-1, scores.shape[-1])[chosen]), sampled.ravel()[chosen].astype(np.int64)
