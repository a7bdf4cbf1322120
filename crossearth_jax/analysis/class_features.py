"""Where the backbone puts each class of each domain: one mean feature vector per image and class.

A class that keeps its place from domain to domain is one the head can still recognise; the report draws them. Only
a few images of a domain are looked at, so that time and memory stay small however large the domain is.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8
from PIL import Image

from crossearth_jax import benchmark
from crossearth_jax.benchmark import Resize
from crossearth_jax.config import Config
from crossearth_jax.inference.resizing import fitted_size
from crossearth_jax.inputs.sources import Example, PreparedSplit
from crossearth_jax.inputs.transforms import window
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.ops.normalization import normalize
from crossearth_jax.runtime import parallel
from crossearth_jax.runtime.atomic import replacing

IMAGES = 48  # per domain
SHARE = 0.02  # of the window, that a class must cover to be counted in an image


def pooled(
    model: SegmentationModel,
    params: Mapping[str, jax.Array],
    images: UInt8[Array, "b h w 3"],
    labels: UInt8[Array, "b h w"],
) -> tuple[Float[Array, "b k c"], Float[Array, "b k"]]:
    """Mean of the backbone's last feature level (with Reins, if the model has them) over the pixels of each class.

    A patch counts for a class by the share of its pixels that are of it.

    Returns:
      Means, zero where a class is absent, and the share of the window that each class covers, in [0, 1].
    """
    features = model.features(params, normalize(images)).levels[-1].astype(jnp.float32)
    size = images.shape[1] // features.shape[1]
    masks = jax.nn.one_hot(labels, model.config.classes)  # nothing for ignored pixels
    weights = rearrange(masks, "b (y dy) (x dx) k -> b y x k (dy dx)", dy=size, dx=size).mean(-1)
    sums = jnp.einsum("byxk,byxc->bkc", weights, features)
    totals = weights.sum((1, 2))
    return sums / jnp.maximum(totals, 1e-6)[..., None], weights.mean((1, 2))


def class_features(
    config: Config, mesh: Mesh, params: Mapping[str, jax.Array], domains: Iterable[str]
) -> dict[str, np.ndarray]:
    """Pools the first `IMAGES` evaluation images of each domain, from the middle window of each.

    Returns:
      Arrays with one row per image and class: `features` (n, c) float16, `classes` (n,) and `domains` (n,), the last
      two as positions in `class_names` and `domain_names`.
    """
    batch, whole = parallel.batch_sharding(mesh), parallel.replicated(mesh)
    model = SegmentationModel(config.model)
    pool = jax.jit(functools.partial(pooled, model), in_shardings=(None, batch, batch), out_shardings=whole)
    features, classes, origins = [], [], []
    names = list(dict.fromkeys(domains))
    for number, domain in enumerate(names):
        for local in _batches(config, mesh, domain):
            arrays = parallel.global_batch(local, mesh)
            means, shares = (np.asarray(value) for value in pool(params, arrays["image"], arrays["label"]))
            rows, found = np.nonzero(shares >= SHARE)
            features.append(means[rows, found].astype(np.float16))
            classes.append(found.astype(np.uint8))
            origins.append(np.full(len(found), number, np.uint16))
    taxonomy = benchmark.TAXONOMIES[str(benchmark.DOMAINS[config.data.source].taxonomy)]
    return {
        "features": np.concatenate(features),
        "classes": np.concatenate(classes),
        "domains": np.concatenate(origins),
        "class_names": np.asarray(taxonomy.classes),
        "domain_names": np.asarray(names),
    }


def _batches(config: Config, mesh: Mesh, domain: str) -> Iterator[dict[str, np.ndarray]]:
    """This process' rows of the batches; the last one is filled up with windows without labels."""
    shards = parallel.batch_shards(mesh)
    size = -(-config.evaluate.batch_size // shards) * shards
    part, count = parallel.input_shard(mesh)
    rows = slice(part * size // count, (part + 1) * size // count)
    split = PreparedSplit(domain, benchmark.DOMAINS[domain].eval_split, config.data.data_dir)
    side = (config.evaluate.window, config.evaluate.window)
    total = min(IMAGES, len(split))
    for first in range(0, total, size):
        images = np.zeros((size, *side, 3), np.uint8)
        labels = np.full((size, *side), benchmark.IGNORE, np.uint8)
        for row, index in enumerate(range(first, min(first + size, total))):
            image, label = _resized(split[index], benchmark.DOMAINS[domain].resize)
            images[row], labels[row] = window(image, label, side, (0.5, 0.5))
        yield {"image": images[rows], "label": labels[rows]}


def _resized(example: Example, resize: Resize | None) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """Image and label at the size at which the image is scored."""
    image, label = Image.fromarray(example["image"]), Image.fromarray(example["label"])
    height, width = fitted_size(example["label"].shape, resize)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image), np.asarray(label.resize((width, height), Image.Resampling.NEAREST))


def write_class_features(path: Path, *arguments: Any) -> None:
    """Writes `class_features(*arguments)` where the report finds them; of several processes, the first one does."""
    arrays = class_features(*arguments)
    if jax.process_index() != 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
