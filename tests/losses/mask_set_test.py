"""The set loss against the reference with its own random points, and properties it does not store."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossearth_jax import parallel
from crossearth_jax.config import LossConfig, MeshConfig
from crossearth_jax.losses import mask_set
from crossearth_jax.ops import matching

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny"
CONFIG = LossConfig(points=196)
CLASSES = 6
PREDICTIONS = ("d0", "d1", "d2", "last")
# Five times the reference's own float32 noise (README of the golden numbers).
TERM_TOLERANCE = {"loss": 2e-5, "loss_one_empty": 2e-5, "loss_all_empty": 5e-5}
COST_TOLERANCE = 3e-5

loss_from_points = jax.jit(mask_set.loss_from_points, static_argnums=0)
mask_set_loss = jax.jit(mask_set.mask_set_loss, static_argnums=0)


@pytest.fixture(scope="module")
def logits():
    """Class and mask logits (p, b, …) of the reference's forward pass, on which its losses were computed."""
    forward = np.load(GOLDEN / "forward.npz")
    return tuple(np.stack([forward[f"{name}{i}"] for i in range(4)]) for name in ("cls_pred", "mask_pred"))


def golden_points(golden):
    """The stored draws; the reference draws for matched masks only, so absent classes get a filler."""
    batch = len(golden["gt"])
    candidates = np.full((batch, 4, CLASSES, 588, 2), 0.5, np.float32)
    uniform = np.full((batch, 4, CLASSES, 49, 2), 0.5, np.float32)
    for p, name in enumerate(PREDICTIONS):
        for row, (image, label) in enumerate(matched_rows(golden, name)):
            candidates[image, p, label] = golden[f"{name}.oversample_points"][row]
            uniform[image, p, label] = golden[f"{name}.random_points"][row]
    match = np.stack([golden[f"{name}.match_points"] for name in PREDICTIONS], axis=1)
    return mask_set.Points(match, candidates, uniform)


def matched_rows(golden, name):
    """(image, label) of each matched mask in the reference's order."""
    return [(i, label) for i in range(len(golden["gt"])) for label in golden[f"{name}.img{i}.matched_labels"]]


@pytest.mark.parametrize("case", list(TERM_TOLERANCE))
def test_terms_equal_the_reference(case, logits):
    golden = np.load(GOLDEN / f"{case}.npz")
    terms = loss_from_points(CONFIG, golden_points(golden), *logits, golden["gt"])
    names = {"class": "cls", "mask": "mask", "dice": "dice"}
    for p in PREDICTIONS:
        for ours, theirs in names.items():
            expected = golden[f"decode.loss_{theirs}" if p == "last" else f"decode.{p}.loss_{theirs}"]
            value = terms[f"{ours}/{p.removeprefix('d')}"]
            np.testing.assert_allclose(value, expected, rtol=0, atol=TERM_TOLERANCE[case], err_msg=f"{ours}/{p}")
    assert len(terms) == 12
    # The total adds twelve terms' rounding.
    np.testing.assert_allclose(sum(terms.values()), golden["total"], rtol=0, atol=12 * TERM_TOLERANCE[case])


@pytest.mark.parametrize("case", ["loss", "loss_one_empty"])
def test_costs_and_assignments_equal_the_reference(case, logits):
    golden = np.load(GOLDEN / f"{case}.npz")
    cost = jax.jit(mask_set.prediction_cost, static_argnums=0)
    match = jax.jit(matching.match)
    for p, name in enumerate(PREDICTIONS):
        for i, labels in enumerate(golden["gt"]):
            prefix = f"{name}.img{i}"
            found = cost(CONFIG, golden[f"{name}.match_points"][i], logits[0][p, i], logits[1][p, i], labels)
            present = golden[f"{prefix}.gt_labels"]
            if len(present):
                np.testing.assert_allclose(
                    found[:, present], golden[f"{prefix}.cost"], rtol=0, atol=COST_TOLERANCE, err_msg=prefix
                )
            result = match(found, matching.present_classes(jnp.asarray(labels), CLASSES))
            query_targets = np.full(8, CLASSES)
            query_targets[result.query[result.matched]] = np.flatnonzero(result.matched)
            np.testing.assert_array_equal(query_targets, golden[f"{prefix}.query_targets"])


def test_uncertain_points_equal_the_reference_as_a_set(logits):
    golden = np.load(GOLDEN / "loss.npz")
    choose = jax.jit(mask_set.uncertain_points, static_argnums=2)
    for p, name in enumerate(PREDICTIONS):
        queries = [(i, q) for i in range(2) for q in golden[f"{name}.img{i}.matched_queries"]]
        masks = np.stack([logits[1][p, i, q] for i, q in queries])
        chosen = np.asarray(choose(masks, golden[f"{name}.oversample_points"], 147))
        for ours, theirs in zip(chosen, golden[f"{name}.points"][:, :147], strict=True):
            # Near ties may fall either way: one point of 147 may differ.
            assert len({*map(tuple, ours)} & {*map(tuple, theirs)}) >= 146


def random_batch(batch, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    class_logits = jnp.asarray(rng.normal(size=(2, batch, 5, 4)), dtype)
    mask_logits = jnp.asarray(rng.normal(scale=3, size=(2, batch, 5, 6, 7)), dtype)
    labels = rng.choice(np.array([0, 1, 2, 255], np.uint8), size=(batch, 12, 14))
    return class_logits, mask_logits, jnp.asarray(labels)


SMALL = LossConfig(points=40)


@pytest.mark.parametrize("ignored", ["everything", "one image"])
def test_gradient_is_finite_and_ignored_images_have_no_mask_gradient(ignored):
    class_logits, mask_logits, labels = random_batch(2)
    labels = labels.at[1 if ignored == "one image" else slice(None)].set(255)

    def total(class_logits, mask_logits):
        return sum(mask_set_loss(SMALL, jax.random.key(0), class_logits, mask_logits, labels).values())

    class_gradient, mask_gradient = jax.jit(jax.grad(total, (0, 1)))(class_logits, mask_logits)
    assert jnp.isfinite(class_gradient).all() and jnp.isfinite(mask_gradient).all()
    assert (jnp.abs(class_gradient).sum((2, 3)) > 0).all()
    assert not mask_gradient[:, 1].any()
    assert bool(mask_gradient[:, 0].any()) == (ignored == "one image")


def test_gradient_equals_differences():
    """The matching and the choice of points are constant nearby, so differences see the same function."""
    class_logits, mask_logits, labels = random_batch(1)

    def total(class_logits, mask_logits):
        return sum(mask_set_loss(SMALL, jax.random.key(0), class_logits, mask_logits, labels).values())

    rng = np.random.default_rng(1)
    direction = [jnp.asarray(rng.normal(size=x.shape), jnp.float32) for x in (class_logits, mask_logits)]
    _, slope = jax.jit(lambda *x: jax.jvp(total, x, tuple(direction)))(class_logits, mask_logits)
    step = 1e-3
    ahead, behind = (total(class_logits + s * direction[0], mask_logits + s * direction[1]) for s in (step, -step))
    # 2e-2: float32 differences at this step, and points that enter or leave the chosen set.
    np.testing.assert_allclose((ahead - behind) / (2 * step), slope, rtol=2e-2)


def test_sharded_batch_equals_one_device():
    class_logits, mask_logits, labels = random_batch(8)
    expected = mask_set_loss(SMALL, jax.random.key(3), class_logits, mask_logits, labels)
    with jax.set_mesh(parallel.make_mesh(MeshConfig(data=4, fsdp=2))):
        sharded = mask_set_loss(SMALL, jax.random.key(3), class_logits, mask_logits, labels)
    for name, value in expected.items():
        np.testing.assert_allclose(sharded[name], value, rtol=1e-6, err_msg=name)


def test_low_precision_logits_give_float32_losses():
    exact = mask_set_loss(SMALL, jax.random.key(3), *random_batch(2))
    rounded = mask_set_loss(SMALL, jax.random.key(3), *random_batch(2, jnp.bfloat16))
    for name, value in rounded.items():
        assert value.dtype == jnp.float32
        # The logits themselves are rounded to 8 bits.
        np.testing.assert_allclose(value, exact[name], rtol=2e-2)


def test_points_are_split_as_in_the_recipe_and_differ_between_keys():
    config = LossConfig()
    points, others = (mask_set.draw_points(config, jax.random.key(seed), 3) for seed in (0, 1))
    assert [x.shape for x in points] == [(12544, 2), (3, 37632, 2), (3, 3136, 2)]
    for x, y in zip(points, others, strict=True):
        assert x.min() >= 0 and x.max() < 1 and abs(x.mean() - 0.5) < 0.01
        assert not jnp.array_equal(x, y)
    assert not jnp.array_equal(points.candidates[0], points.candidates[1])


def test_more_classes_than_queries_matches_every_query():
    class_logits = jnp.zeros((1, 1, 2, 4))
    mask_logits = jnp.zeros((1, 1, 2, 4, 4))
    labels = jnp.asarray([[[0, 1, 2, 2]] * 4], jnp.uint8)
    terms = mask_set_loss(SMALL, jax.random.key(0), class_logits, mask_logits, labels)
    # All logits are 0: every query is matched, cross-entropy log 4 per query and log 2 per point.
    np.testing.assert_allclose(terms["class/last"], 2 * np.log(4), rtol=1e-6)
    np.testing.assert_allclose(terms["mask/last"], 5 * np.log(2), rtol=1e-6)
