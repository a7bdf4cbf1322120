"""Baselines without a network, shown in every report beside the model.

`majority` predicts the most frequent class of the source for every pixel. `colour` classifies each pixel by its RGB
value alone, with gradient-boosted trees fitted on labelled pixels of the source's train split. A model that does not
score higher than both has learnt nothing about shape or context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

from crossearth_jax.benchmark import IGNORE
from crossearth_jax.benchmark.registry import find_domain, source_domains
from crossearth_jax.inference import metrics
from crossearth_jax.inputs.sources import PreparedSplit

# Largest number of pixels the trees are fitted on; blue_marble/temperate_green has fewer (766,000). The mean over its
# unseen climates changes by one or two points with the random seed, and by up to seven with 50,000 pixels, because few
# pixels decide how colours that are rare in the source (snow) are classified.
PIXELS = 1_000_000
SAMPLED = 2**26  # pixels of the train splits held in memory, from which those of the fit are drawn
SEED = 0

type Classifier = Callable[[UInt8[np.ndarray, "n 3"]], UInt8[np.ndarray, " n"]]


def confusions(
    source: str, targets: Iterable[str], data_dir: str | Path
) -> dict[str, dict[str, Int[np.ndarray, "k k"]]]:
    """Fit the baselines on `source` and return their confusion matrices on the targets.

    Rows are true classes, columns predicted ones; ignored pixels are not counted.

    Args:
      source: domain, or domains joined by "+", on whose train split the baselines are fitted.
      targets: domains whose evaluation split is scored.
      data_dir: folder of the prepared datasets.

    Returns:
      {"majority" or "colour": {target: matrix}}.

    Raises:
      UserError: a domain is unknown or not prepared.
    """
    domains = source_domains(source, data_dir)
    classes = len(domains[0].classes)
    sampled = [sampled_pixels(domain.name, "train", data_dir, SAMPLED // len(domains)) for domain in domains]
    pixels, labels = (np.concatenate(column) for column in zip(*sampled, strict=True))
    classifiers = {"majority": fit_majority(labels), "colour": fit_colour(pixels, labels)}
    results: dict[str, dict[str, np.ndarray]] = {name: {} for name in classifiers}
    for target in targets:
        for name in classifiers:
            results[name][target] = np.zeros((classes, classes), np.int64)
        for pixels, labels in labelled_pixels(target, find_domain(target, data_dir).eval_split, data_dir):
            for name, classifier in classifiers.items():
                results[name][target] += metrics.confusion(labels, classifier(pixels), classes)
    return results


def labelled_pixels(
    domain: str, split: str, data_dir: str | Path
) -> Iterator[tuple[UInt8[np.ndarray, "n 3"], UInt8[np.ndarray, " n"]]]:
    """Yield RGB values and train ids of the labelled pixels of each image of a split; ignored pixels are left out."""
    source = PreparedSplit(domain, split, data_dir)
    for index in range(len(source)):
        example = source[index]
        kept = example["label"] != IGNORE
        yield example["image"][kept], example["label"][kept]


def sampled_pixels(
    domain: str, split: str, data_dir: str | Path, most: int = SAMPLED
) -> tuple[UInt8[np.ndarray, "n 3"], UInt8[np.ndarray, " n"]]:
    """Return the labelled pixels of a split.

    If the split has more than `most` pixels, at most `most` / (number of images) are drawn at random from each image.
    """
    source = PreparedSplit(domain, split, data_dir)
    height, width = source.size(0)
    share = most // len(source) if len(source) * height * width > most else None
    generator = np.random.default_rng(SEED)
    chosen: list[tuple[np.ndarray, np.ndarray]] = []
    for pixels, labels in labelled_pixels(domain, split, data_dir):
        if share is not None and len(labels) > share:
            kept = generator.choice(len(labels), share, replace=False)
            pixels, labels = pixels[kept], labels[kept]
        chosen.append((pixels, labels))
    return np.concatenate([pixels for pixels, _ in chosen]), np.concatenate([labels for _, labels in chosen])


def fit_majority(labels: UInt8[np.ndarray, " n"]) -> Classifier:
    """Return a classifier that always predicts the most frequent of `labels` (the lowest id in a tie)."""
    majority = np.bincount(labels).argmax().astype(np.uint8)
    return lambda pixels: np.full(len(pixels), majority)


def fit_colour(pixels: UInt8[np.ndarray, "n 3"], labels: UInt8[np.ndarray, " n"]) -> Classifier:
    """Fit gradient-boosted trees on RGB values; they see at most `PIXELS` pixels, drawn with a fixed seed."""
    chosen = np.random.default_rng(SEED).permutation(len(labels))[:PIXELS]
    trees = HistGradientBoostingClassifier(random_state=SEED)
    # One thread: the waiting threads of scikit-learn use CPU time, and on a busy machine the fit then takes minutes.
    with threadpool_limits(limits=1):
        trees.fit(pixels[chosen], labels[chosen])

    # Classify each colour only once, when it first occurs; after that its class is looked up.
    table = np.full(1 << 24, IGNORE, np.uint8)

    def classify(pixels: UInt8[np.ndarray, "n 3"]) -> UInt8[np.ndarray, " n"]:
        packed = np.einsum("nc,c->n", pixels, np.array([1 << 16, 1 << 8, 1]), dtype=np.int64)
        new = np.unique(packed[table[packed] == IGNORE])
        if len(new):
            with threadpool_limits(limits=1):
                colours = np.stack([new >> 16, new >> 8 & 255, new & 255], axis=-1)
                table[new] = np.asarray(trees.predict(colours), np.uint8)
        return table[packed]

    return classify
