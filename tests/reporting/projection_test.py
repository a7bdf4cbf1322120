"""Projections keep clusters apart and are reproducible; nearest centres are worked out by hand."""

import sys
import types

import numpy as np
import pytest

from crossearth_jax.config import UserError
from crossearth_jax.reporting import projection
from crossearth_jax.reporting.run import ClassFeatures


def clusters(count=12, channels=8):
    rng = np.random.default_rng(0)
    centres = rng.normal(scale=20, size=(3, 1, channels))
    return (centres + rng.normal(size=(3, count, channels))).reshape(-1, channels)


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_clusters_stay_apart_and_places_are_the_same_every_time(method):
    points = projection.project(clusters(), method)
    np.testing.assert_array_equal(points, projection.project(clusters(), method))
    groups = points.reshape(3, 12, 2)
    centres = groups.mean(1)
    widest = np.linalg.norm(groups - centres[:, None], axis=-1).max()
    assert min(np.linalg.norm(centres[i] - centres[j]) for i, j in ((0, 1), (0, 2), (1, 2))) > 2 * widest


def test_principal_components_are_those_of_standardised_channels():
    vectors = clusters()
    scaled = (vectors - vectors.mean(0)) / vectors.std(0)
    _, _, axes = np.linalg.svd(scaled, full_matrices=False)
    expected = scaled @ axes[:2].T
    np.testing.assert_allclose(np.abs(projection.project(vectors, "pca")), np.abs(expected), atol=1e-9)


def test_few_vectors_are_drawn_by_principal_components():
    vectors = np.array([[0.0, 0], [2, 0]])
    np.testing.assert_allclose(np.abs(projection.project(vectors, "tsne")), [[1, 0], [1, 0]])


def test_umap_is_asked_for_repeatable_places(monkeypatch):
    asked = {}

    class Umap:
        def __init__(self, **options):
            asked.update(options)

        def fit_transform(self, axes):
            return axes[:, 1:3]

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Umap))
    assert projection.project(clusters(), "umap").shape == (36, 2)
    assert asked == {"n_neighbors": 15, "random_state": 0, "n_jobs": 1}


def test_methods_that_are_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match="install the extra 'umap'"):
        projection.project(clusters(), "umap")
    with pytest.raises(UserError, match="projection is 'sne', expected one of tsne, pca, umap"):
        projection.project(clusters(), "sne")


def test_nearest_centres_by_hand():
    # One channel. In the home domain water is at 0 and 2, land at 10: centres 1 and 10, and 5.5 is halfway between.
    features = ClassFeatures(
        values=np.array([[0.0], [2], [10], [5], [6], [4], [30]], np.float32),
        classes=np.array([0, 0, 1, 0, 0, 1, 2]),  # the home domain has no vector of class 2
        domains=np.array([0, 0, 0, 1, 1, 1, 1]),
        class_names=("water", "land", "snow"),
        domain_names=("home", "away"),
    )
    found = projection.nearest_centres(features, "home")
    np.testing.assert_array_equal(found, [[100, 100, np.nan], [50, 0, np.nan]])
