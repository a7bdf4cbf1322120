"""Class features: the mean feature vector of the backbone for each class in each image, in every target domain.

The report draws them. If the features of a class are similar in two domains, the head can recognise the class in
both. At most `IMAGES` images of a domain are used, so time and memory do not grow with the size of the domain.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, UInt8
from PIL import Image

from crossearth_jax import benchmark
from crossearth_jax.benchmark import Resize
from crossearth_jax.benchmark.registry import find_domain, source_domains
from crossearth_jax.inference.resizing import fitted_size
from crossearth_jax.inference.segmentor import Segmentor
from crossearth_jax.inputs.sources import PreparedSplit, Record
from crossearth_jax.inputs.transforms import window
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.ops.normalization import normalize

IMAGES = 48  # per domain
BATCH = 4  # windows that go through the backbone together
SHARE = 0.02  # smallest share of the window that a class must cover to get a feature vector in an image


def pooled(
    model: SegmentationModel,
    params: Mapping[str, jax.Array],
    images: UInt8[Array, "b h w 3"],
    labels: UInt8[Array, "b h w"],
) -> tuple[Float[Array, "b k c"], Float[Array, "b k"]]:
    """Average the backbone's last feature level over the pixels of each class, separately in each image.

    The features include the corrections of the Rein adapters, if the model has them. A patch has the weight of the
    share of its pixels that belong to the class.

    Returns:
      The means, zero for absent classes, and the share of the window that each class covers, in [0, 1].
    """
    features = model.features(params, normalize(images)).levels[-1].astype(jnp.float32)
    size = images.shape[1] // features.shape[1]
    masks = jax.nn.one_hot(labels, model.config.classes)  # all zero for ignored pixels
    weights = rearrange(masks, "b (y dy) (x dx) k -> b y x k (dy dx)", dy=size, dx=size).mean(-1)
    sums = jnp.einsum("byxk,byxc->bkc", weights, features)
    totals = weights.sum((1, 2))
    return sums / jnp.maximum(totals, 1e-6)[..., None], weights.mean((1, 2))


def class_features(segmentor: Segmentor, source: str, targets: Iterable[str], data_dir: str) -> dict[str, np.ndarray]:
    """Compute class features from the central window of the first `IMAGES` evaluation images of each target.

    Args:
      segmentor: the model.
      source: its source domain or domains, which give the class names.
      targets: domains whose images are used.
      data_dir: folder of the prepared datasets.

    Returns:
      Arrays with one row per image and class: `features` (n, c) float16, `classes` (n,) and `domains` (n,). The last
      two are indices into `class_names` and `domain_names`, which are also returned.
    """
    pool = jax.jit(functools.partial(pooled, segmentor.model))
    features, classes, origins = [], [], []
    names = list(dict.fromkeys(targets))
    for number, domain in enumerate(names):
        for images, labels in _batches(domain, data_dir, segmentor.window):
            means, shares = jax.device_get(pool(segmentor.params, images, labels))
            rows, found = np.nonzero(shares >= SHARE)
            features.append(means[rows, found].astype(np.float16))
            classes.append(found.astype(np.uint8))
            origins.append(np.full(len(found), number, np.uint16))
    return {
        "features": np.concatenate(features),
        "classes": np.concatenate(classes),
        "domains": np.concatenate(origins),
        "class_names": np.asarray(source_domains(source, data_dir)[0].classes),
        "domain_names": np.asarray(names),
    }


def _batches(
    domain: str, data_dir: str, side: int
) -> Iterator[tuple[UInt8[np.ndarray, "_ _ _ 3"], UInt8[np.ndarray, "_ _ _"]]]:
    """Yield the central windows in batches of one size; the last batch is padded with windows that have no labels."""
    facts = find_domain(domain, data_dir)
    split = PreparedSplit(domain, facts.eval_split, data_dir)
    for group in itertools.batched(range(min(IMAGES, len(split))), BATCH):
        images = np.zeros((BATCH, side, side, 3), np.uint8)
        labels = np.full((BATCH, side, side), benchmark.IGNORE, np.uint8)
        for row, index in enumerate(group):
            image, label = _resized(split[index], facts.resize)
            images[row], labels[row] = window(image, label, (side, side), (0.5, 0.5))
        yield images, labels


def _resized(record: Record, resize: Resize | None) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """Resize image and label to the size at which the image is scored."""
    image, label = Image.fromarray(record["image"]), Image.fromarray(record["label"])
    height, width = fitted_size(record["label"].shape, resize)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image), np.asarray(label.resize((width, height), Image.Resampling.NEAREST))
