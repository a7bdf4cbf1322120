"""Fréchet distance between Gaussians (Dowson and Landau 1982), as used on features by Heusel et al. 2017."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def frechet_distance(
    mean_a: Float[np.ndarray, " k"],
    covariance_a: Float[np.ndarray, "k k"],
    mean_b: Float[np.ndarray, " k"],
    covariance_b: Float[np.ndarray, "k k"],
) -> float:
    """Compute the squared 2-Wasserstein distance: |mean_a - mean_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2).

    This symmetric form needs only eigenvalues of positive semidefinite matrices, so singular covariances (from fewer
    samples than dimensions) need no special case. Computed in float64; at least 0.
    """
    eigenvalues, vectors = np.linalg.eigh(covariance_a.astype(np.float64))
    root = (vectors * np.sqrt(np.clip(eigenvalues, 0, None))) @ vectors.T  # the symmetric square root of A
    eigenvalues = np.linalg.eigvalsh(root @ covariance_b.astype(np.float64) @ root)
    cross = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    difference = mean_a.astype(np.float64) - mean_b.astype(np.float64)
    distance = difference @ difference + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross
    return max(float(distance), 0.0)
