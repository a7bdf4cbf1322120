"""Matching compared with SciPy's linear_sum_assignment, and the cost with its definition in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from crossearth_jax.config import LossConfig
from crossearth_jax.ops import matching

match = jax.jit(jax.vmap(matching.match))


def assert_one_to_one(queries, matched):
    assert len(set(queries[matched].tolist())) == matched.sum()


@pytest.mark.parametrize(("queries", "classes"), [(8, 6), (5, 9), (6, 6), (1, 4), (4, 1), (100, 20)])
def test_match_is_optimal_over_the_present_classes(queries, classes):
    rng = np.random.default_rng(queries * 100 + classes)
    cost = rng.normal(scale=5, size=(100, queries, classes)).astype(np.float32)
    present = rng.uniform(size=(100, classes)) < rng.uniform(size=(100, 1))
    result = match(cost, present)
    for c, p, query, matched in zip(cost, present, np.asarray(result.query), np.asarray(result.matched), strict=True):
        rows, columns = linear_sum_assignment(c[:, p])
        assert matched.sum() == len(rows) == min(queries, p.sum())
        assert not matched[~p].any()
        assert_one_to_one(query, matched)
        np.testing.assert_allclose(c[query, np.arange(classes)][matched].sum(), c[:, p][rows, columns].sum(), atol=1e-4)
        # With continuous costs the optimum is unique, so the pairs themselves agree.
        assert dict(zip(np.flatnonzero(p)[columns], rows, strict=True)) == {
            k: query[k] for k in np.flatnonzero(matched)
        }


def test_nan_and_infinite_costs_are_avoided_and_end():
    cost = np.zeros((3, 4, 3), np.float32)
    cost[0] = np.nan
    cost[1] = np.inf
    cost[1, 2] = -np.inf
    cost[2, [0, 1, 3], 0] = np.nan
    result = match(cost, np.ones((3, 3), bool))
    for query, matched in zip(np.asarray(result.query), np.asarray(result.matched), strict=True):
        assert matched.all()
        assert_one_to_one(query, matched)
    assert result.query[2, 0] == 2


def test_no_class_present_matches_nothing():
    assert not match(np.ones((1, 4, 3), np.float32), np.zeros((1, 3), bool)).matched.any()


def test_present_classes_leaves_out_ignored_and_unknown_labels():
    labels = jnp.array([[0, 255], [2, 7]], jnp.uint8)
    np.testing.assert_array_equal(matching.present_classes(labels, 4), [True, False, True, False])


def test_cost_follows_its_definition():
    rng = np.random.default_rng(0)
    class_logits = rng.normal(size=(5, 4)).astype(np.float32)
    logits = rng.normal(scale=8, size=(50, 5)).astype(np.float32)
    targets = rng.uniform(size=(50, 3)).astype(np.float32)
    config = LossConfig(class_weight=2.0, mask_weight=3.0, dice_weight=4.0)
    cost = matching.matching_cost(config, jnp.asarray(class_logits), jnp.asarray(logits), jnp.asarray(targets))
    for q in range(5):
        for k in range(3):
            x, t = logits[:, q].astype(float), targets[:, k].astype(float)
            s = 1 / (1 + np.exp(-x))
            probability = np.exp(class_logits[q, k]) / np.exp(class_logits[q]).sum()
            cross_entropy = np.mean(-t * np.log(s) - (1 - t) * np.log1p(-s))
            dice = 1 - (2 * (s * t).sum() + 1) / (s.sum() + t.sum() + 1)
            expected = -2 * probability + 3 * cross_entropy + 4 * dice
            np.testing.assert_allclose(cost[q, k], expected, rtol=2e-6, atol=2e-6)
