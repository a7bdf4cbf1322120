"""Probabilities of the classes from scores, with a temperature.

The probabilities of a pixel are its scores, raised to the power 1 / T and divided by their sum. With temperature T = 1
they are the shares of the scores, and for the head "fcn" the scores themselves. A temperature never changes which class
is the most probable one. The functions take NumPy or JAX arrays and return the same kind; in their results the axis of
the classes or temperatures is the first one, since NumPy is slow in reducing a short last axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

FLOOR = 1e-12  # smallest ratio of a score to the largest one, so that every class keeps some probability


def log_ratios(scores: Float[Any, "*b k"]) -> Float[Any, "k ..."]:
    """Return the logarithm of each score divided by the largest score of its pixel; at least log(`FLOOR`).

    Where all scores are 0, all ratios are 1. Subnormal scores count as 0: XLA turns them into 0, other programs that
    run an exported model do not.
    """
    xp = scores.__array_namespace__()
    scores = xp.moveaxis(scores, -1, 0)
    if isinstance(scores, np.ndarray):
        scores = np.ascontiguousarray(scores)
    best = scores.max(0)
    nothing = best < np.finfo(np.float32).tiny
    return xp.log(xp.maximum((scores + nothing) / (best + nothing), FLOOR))


def probabilities(scores: Float[Any, "*b k"], temperature: float = 1.0) -> Float[Any, "k ..."]:
    """Return the probability of every class; they sum to 1 at every pixel."""
    powers = scores.__array_namespace__().exp(log_ratios(scores) / temperature)
    return powers / powers.sum(0)


def best_probabilities(scores: Float[Any, "*b k"], temperatures: Sequence[float]) -> Float[Any, "t ..."]:
    """Return the probability of the most probable class at each temperature."""
    xp = scores.__array_namespace__()
    ratios = log_ratios(scores)
    found = [1 / xp.exp(ratios / temperature).sum(0) for temperature in temperatures]
    return xp.stack(found) if found else xp.zeros((0, *scores.shape[:-1]), xp.float32)
