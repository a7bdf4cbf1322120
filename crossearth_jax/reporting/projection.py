"""Feature vectors in two dimensions, always the same way, and how well classes stay apart from domain to domain."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from crossearth_jax.config import UserError
from crossearth_jax.reporting.run import ClassFeatures

DIMENSIONS = 30  # that t-SNE and UMAP start from, by principal components
FEWEST = 10  # vectors, below which neighbourhoods say nothing and principal components are drawn

Vectors = Float[np.ndarray, "n c"]
Points = Float[np.ndarray, "n 2"]


def standardised(vectors: Vectors) -> Vectors:
    """Every channel with mean 0 and variance 1: a few channels of vision transformers are huge."""
    spread = vectors.std(0)
    return (vectors - vectors.mean(0)) / np.where(spread > 0, spread, 1)


def project(vectors: Vectors, method: str) -> Points:
    """Places vectors in the plane; the same vectors always give the same places.

    Args:
      vectors: at least two.
      method: a key of `METHODS`.

    Raises:
      UserError: the method is unknown, or its package is missing.
    """
    if method not in METHODS:
        raise UserError(f"the projection is '{method}', expected one of {', '.join(METHODS)}")
    scaled = standardised(vectors.astype(np.float64))
    axes = PCA(min(DIMENSIONS, *scaled.shape), svd_solver="full").fit_transform(scaled)
    if method == "pca" or len(vectors) < FEWEST:
        return np.pad(axes, ((0, 0), (0, 1)))[:, :2]
    return METHODS[method](axes)


def _tsne(axes: Vectors) -> Points:
    neighbours = min(30.0, (len(axes) - 1) / 3)
    # One thread: so few points keep no more busy, and several wait for each other on a machine with other work.
    with threadpool_limits(1):
        return TSNE(perplexity=neighbours, init="pca", random_state=0).fit_transform(axes)


def _umap(axes: Vectors) -> Points:
    try:
        umap = importlib.import_module("umap")
    except ImportError:
        raise UserError("UMAP needs a package that is not installed: pip install 'crossearth-jax[umap]'") from None
    neighbours = min(15, len(axes) - 1)
    # With a fixed state it works on one core, and says so unless told.
    return umap.UMAP(n_neighbors=neighbours, random_state=0, n_jobs=1).fit_transform(axes)


METHODS: dict[str, Callable[[Vectors], Points]] = {"tsne": _tsne, "pca": lambda axes: axes[:, :2], "umap": _umap}
TITLES = {"tsne": "t-SNE", "pca": "Principal components", "umap": "UMAP"}


def nearest_centres(features: ClassFeatures, home: str) -> Float[np.ndarray, "d k"]:
    """How many of a class' vectors lie nearest to that class' own centre in the domain `home`, in percent.

    Distances are Euclidean, of standardised vectors; centres are means. NaN for a class that a domain or `home`
    lacks. In `home` itself the centres are made of the vectors they judge.
    """
    scaled = standardised(features.values)
    at_home = features.domains == features.domain_names.index(home)
    known = [kind for kind in range(len(features.class_names)) if (at_home & (features.classes == kind)).any()]
    centres = np.stack([scaled[at_home & (features.classes == kind)].mean(0) for kind in known])
    distances = np.stack([np.square(scaled - centre).sum(1) for centre in centres], axis=1)
    right = np.array(known)[distances.argmin(1)] == features.classes
    shares = np.full((len(features.domain_names), len(features.class_names)), np.nan)
    for domain in range(len(features.domain_names)):
        for kind in known:
            chosen = (features.domains == domain) & (features.classes == kind)
            if chosen.any():
                shares[domain, kind] = 100 * right[chosen].mean()
    return shares
