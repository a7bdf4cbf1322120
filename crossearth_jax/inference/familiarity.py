"""How much the windows of a scene differ from the images that a model was trained on.

A window is described by its mean features and by mean and standard deviation of its bands
(`segmentor.window_descriptors`), which are by-products of scoring it. Its distance is the Mahalanobis distance to the
windows of training images, divided by the square root of the number of components. The covariance is shrunk (Ledoit and
Wolf 2004), and its smallest eigenvalues are replaced by their mean, so that a few numbers per component suffice. A
window is unfamiliar if it is farther away than all but 1 % of the windows of the source's hold-out. The weights file
stores these statistics (`inference.calibration`).
"""

from __future__ import annotations

import base64

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Float

from crossearth_jax.weights.native import Reference

PERCENTILE = 99  # of the distances of the hold-out's windows: the limit
RANK = 32  # eigenvalues of the covariance that are kept
UNFAMILIAR_SHARE = 0.1  # a scene is called unfamiliar from this share of unfamiliar windows on, ten times the expected


def fit_reference(training: Float[np.ndarray, "n d"], held_out: Float[np.ndarray, "m d"]) -> Reference | None:
    """Compute the statistics of training windows, and the limit from held-out windows.

    Args:
      training: descriptors of windows of training images; windows without a descriptor are NaN.
      held_out: descriptors of windows of the hold-out.

    Returns:
      None if there are less than two training windows or no held-out window with a descriptor.
    """
    from sklearn.covariance import LedoitWolf  # takes a second to import, and maps do not need it

    training, held_out = (rows[np.isfinite(rows).all(axis=1)].astype(np.float64) for rows in (training, held_out))
    if len(training) < 2 or not len(held_out):
        return None
    mean, deviation = training.mean(axis=0), training.std(axis=0)
    deviation[deviation == 0] = 1
    covariance = LedoitWolf().fit((training - mean) / deviation).covariance_
    eigenvalues, vectors = np.linalg.eigh(covariance)  # ascending
    rest = eigenvalues[:-RANK].mean() if len(eigenvalues) > RANK else eigenvalues[0]
    # With u = (x - mean) * scale, the squared distance is |u|^2 minus the share of the kept directions that their
    # eigenvalues, which are larger than `rest`, explain.
    scale = 1 / (deviation * np.sqrt(rest))
    directions = vectors[:, -RANK:] * np.sqrt(1 - rest / eigenvalues[-RANK:])
    rows = np.concatenate([mean[None], scale[None], directions.T]).astype(np.float32)
    found = distances(rows, held_out.astype(np.float32))
    return Reference(
        size=rows.shape[1],
        rows=base64.b64encode(rows.astype("<f4").tobytes()).decode(),
        limit=float(np.percentile(found, PERCENTILE)),
    )


@jax.jit
def distances(rows: Float[Array, "r d"], descriptors: Float[Array, "n d"]) -> Float[Array, " n"]:
    """Return the distance of each window; `rows` are those of a `Reference`. A window without a descriptor gets NaN."""
    mean, scale, directions = rows[0], rows[1], rows[2:]
    standardised = (descriptors - mean) * scale
    along = jnp.matmul(standardised, directions.T, precision=jax.lax.Precision.HIGHEST)
    squared = (standardised**2).sum(1) - (along**2).sum(1)
    return jnp.sqrt(jnp.maximum(squared, 0) / rows.shape[1])


def decoded(reference: Reference) -> Float[np.ndarray, "r d"]:
    """Return mean, scale and directions of a reference, one per row."""
    values = np.frombuffer(base64.b64decode(reference.rows), "<f4")
    return values.reshape(-1, reference.size)


class Familiarity:
    """The distances of the windows of a scene; `observe` is given to `Segmentor.sliding_windows`."""

    def __init__(self, reference: Reference):
        self._limit = reference.limit
        self._rows = jnp.asarray(decoded(reference))
        self._batches: list[jax.Array] = []

    def clear(self) -> None:
        """Forget all windows; call it before each scene."""
        self._batches.clear()

    def observe(self, descriptors: jax.Array) -> None:
        """Add a batch of windows; only their distances are kept, and their computation may still be running."""
        self._batches.append(distances(self._rows, descriptors))

    def tags(self, scene: str) -> dict[str, str]:
        """Return what the metadata of a map says, and log one line if the scene is unfamiliar.

        Args:
          scene: name of the scene in the log.

        Returns:
          Percent of unfamiliar windows, their median distance and the limit; empty if no window has a descriptor.
        """
        found = np.concatenate([np.asarray(batch) for batch in self._batches])
        found = found[np.isfinite(found)]
        if not len(found):
            return {}
        share, median = float(np.mean(found > self._limit)), float(np.median(found))
        if share >= UNFAMILIAR_SHARE:
            logging.warning(
                "%s: unfamiliar ground: %.0f %% of the windows differ more from the training images than %d %% of the "
                "held-out windows do (median distance %.2f, limit %.2f); check the map against reference data",
                scene, 100 * share, PERCENTILE, median, self._limit,
            )  # fmt: skip
        return {
            "UNFAMILIAR_PERCENT": f"{100 * share:.1f}",
            "MEDIAN_DISTANCE": f"{median:.3f}",
            "DISTANCE_LIMIT": f"{self._limit:.3f}",
        }
