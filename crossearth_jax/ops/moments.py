"""Mean and covariance of a stream of vectors, and the covariance factor for sampling from them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


class Moments:
    """Streaming mean and sample covariance in float64 (update formulas of Chan, Golub and LeVeque).

    Every batch is centred on its own mean before it is added, which avoids cancellation if the mean is large compared
    with the deviations. Accumulators of two parts of the data can be merged into that of the whole.
    """

    def __init__(self, size: int):
        self.count = 0
        self.mean = np.zeros(size)
        self._scatter = np.zeros((size, size))  # sum of outer products of deviations from the mean

    def add(self, vectors: Float[np.ndarray, "n k"]) -> None:
        """Add a batch of vectors."""
        if len(vectors):
            vectors = vectors.astype(np.float64)
            mean = vectors.mean(axis=0)
            self._merge(len(vectors), mean, (vectors - mean).T @ (vectors - mean))

    def merge(self, other: Moments) -> None:
        """Add the vectors of another accumulator."""
        if other.count:
            self._merge(other.count, other.mean, other._scatter)

    def _merge(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total = self.count + count
        difference = mean - self.mean
        self.mean = self.mean + difference * (count / total)
        self._scatter = self._scatter + scatter + np.outer(difference, difference) * (self.count * count / total)
        self.count = total

    @property
    def covariance(self) -> Float[np.ndarray, "k k"]:
        """Sample covariance (divided by count - 1); zero for fewer than two vectors."""
        return self._scatter / max(self.count - 1, 1)


def covariance_factor(covariance: Float[np.ndarray, "k k"]) -> Float[np.ndarray, "k k"]:
    """Return the factor A = U sqrt(S) from the covariance's singular value decomposition.

    For standard normal z, z A^T + mean has this covariance. Computed in float64, as in the reference. Columns are
    ordered by decreasing variance; their signs are arbitrary.
    """
    u, s, _ = np.linalg.svd(covariance.astype(np.float64))
    return u * np.sqrt(s)


def effective_dimension(covariance: Float[np.ndarray, "k k"]) -> float:
    """Return the exponential of the entropy of the normalised eigenvalues.

    It is k if the variance is the same in all directions, 1 if all vectors lie on a line, 0 if all are equal.
    """
    eigenvalues = np.clip(np.linalg.eigvalsh(covariance), 0, None)
    shares = eigenvalues[eigenvalues > 0] / max(eigenvalues.sum(), np.finfo(float).tiny)
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0
