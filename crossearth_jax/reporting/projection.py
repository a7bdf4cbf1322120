"""Reproducible projection of feature vectors to two dimensions, and how well features separate classes by domain."""

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

DIMENSIONS = 30  # number of principal components to which features are reduced before t-SNE and UMAP
FEWEST = 10  # with fewer vectors, t-SNE and UMAP are not meaningful and principal components are used

Vectors = Float[np.ndarray, "n c"]
Points = Float[np.ndarray, "n 2"]


def standardised(vectors: Vectors) -> Vectors:
    """Scale every channel to mean 0 and variance 1, since a few channels of vision transformers are very large."""
    spread = vectors.std(0)
    return (vectors - vectors.mean(0)) / np.where(spread > 0, spread, 1)


def project(vectors: Vectors, method: str) -> Points:
    """Project vectors to two dimensions; the same vectors always give the same points.

    Args:
      vectors: at least two vectors.
      method: a key of `METHODS`. With fewer than `FEWEST` vectors the result is that of "pca".

    Raises:
      UserError: the method is unknown, or its package is not installed.
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
    # One thread: more do not help with so few points, and on a busy machine they wait for each other.
    with threadpool_limits(1):
        return TSNE(perplexity=neighbours, init="pca", random_state=0).fit_transform(axes)


def _umap(axes: Vectors) -> Points:
    try:
        umap = importlib.import_module("umap")
    except ImportError:
        raise UserError(
            "UMAP needs a package that is not installed; install the extra 'umap': "
            "python -m uv pip install --python .venv -c constraints.txt -e '.[umap]'"
        ) from None
    neighbours = min(15, len(axes) - 1)
    # With a fixed random state UMAP uses one core, and warns unless n_jobs is 1.
    return umap.UMAP(n_neighbors=neighbours, random_state=0, n_jobs=1).fit_transform(axes)


METHODS: dict[str, Callable[[Vectors], Points]] = {"tsne": _tsne, "pca": lambda axes: axes[:, :2], "umap": _umap}
TITLES = {"tsne": "t-SNE", "pca": "Principal components", "umap": "UMAP"}


def nearest_centres(features: ClassFeatures, home: str) -> Float[np.ndarray, "d k"]:
    """Return, by domain and class, the percentage of vectors whose nearest class centre is that of their own class.

    The centre of a class is the mean of its vectors in the domain `home`. Distances are Euclidean, between
    standardised vectors. A value is NaN if the domain or `home` has no vector of the class. The values of `home` itself
    are optimistic, since its centres are computed from the same vectors.
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
