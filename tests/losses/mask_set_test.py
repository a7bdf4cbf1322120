"""The set loss compared with the reference at the reference's random points, and further properties."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossearth_jax.config import LossConfig, MeshConfig
from crossearth_jax.losses import mask_set
from crossearth_jax.ops import matching, sampling
from crossearth_jax.runtime import parallel

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny"
CONFIG = LossConfig(points=196)
CLASSES = 6
PREDICTIONS = ("d0", "d1", "d2", "last")
# Five times the float32 noise of the reference (README of the golden numbers).
TERM_TOLERANCE = {"loss": 2e-5, "loss_one_empty": 2e-5, "loss_all_empty": 5e-5}
COST_TOLERANCE = 3e-5

loss_from_points = jax.jit(mask_set.loss_from_points, static_argnums=0)
mask_set_loss = jax.jit(mask_set.mask_set_loss, static_argnums=0)


@pytest.fixture(scope="module")
def logits():
    """Return class and mask logits (p, b, …) of the reference's forward pass, from which its losses were computed."""
    forward = np.load(GOLDEN / "forward.npz")
    return tuple(np.stack([forward[f"{name}{i}"] for i in range(4)]) for name in ("cls_pred", "mask_pred"))


def golden_points(golden):
    """Return the stored points. The reference draws them for matched masks only, so other classes get a filler."""
    batch = len(golden["gt"])
    loss = np.full((batch, 4, CLASSES, 588 + 49, 2), 0.5, np.float32)
    for p, name in enumerate(PREDICTIONS):
        for row, (image, label) in enumerate(matched_rows(golden, name)):
            draws = golden[f"{name}.oversample_points"][row], golden[f"{name}.random_points"][row]
            loss[image, p, label] = np.concatenate(draws)
    return mask_set.Points(np.stack([golden[f"{name}.match_points"] for name in PREDICTIONS], axis=1), loss)


def matched_rows(golden, name):
    """Return (image, label) of each matched mask in the reference's order."""
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
    # The total contains the rounding errors of twelve terms.
    np.testing.assert_allclose(sum(terms.values()), golden["total"], rtol=0, atol=12 * TERM_TOLERANCE[case])


@pytest.mark.parametrize("case", ["loss", "loss_one_empty"])
def test_costs_and_assignments_equal_the_reference(case, logits):
    golden = np.load(GOLDEN / f"{case}.npz")
    cost = jax.jit(mask_set.prediction_cost, static_argnums=0)
    match = jax.jit(matching.match)
    for i, labels in enumerate(jnp.asarray(golden["gt"])):
        packed = sampling.pack_labels(labels)
        for p, name in enumerate(PREDICTIONS):
            prefix = f"{name}.img{i}"
            found = cost(CONFIG, golden[f"{name}.match_points"][i], logits[0][p, i], logits[1][p, i], packed)
            present = golden[f"{prefix}.gt_labels"]
            if len(present):
                np.testing.assert_allclose(
                    found[:, present], golden[f"{prefix}.cost"], rtol=0, atol=COST_TOLERANCE, err_msg=prefix
                )
            result = match(found, matching.present_classes(labels, CLASSES))
            query_targets = np.full(8, CLASSES)
            query_targets[result.query[result.matched]] = np.flatnonzero(result.matched)
            np.testing.assert_array_equal(query_targets, golden[f"{prefix}.query_targets"])


def test_points_that_count_equal_the_reference_as_a_set(logits):
    golden = np.load(GOLDEN / "loss.npz")
    sample = jax.jit(jax.vmap(sampling.sample_points))
    for p, name in enumerate(PREDICTIONS):
        queries = [(i, q) for i in range(2) for q in golden[f"{name}.img{i}.matched_queries"]]
        masks = np.stack([logits[1][p, i, q] for i, q in queries])
        points = np.concatenate([golden[f"{name}.oversample_points"], golden[f"{name}.random_points"]], axis=1)
        weights = np.asarray(mask_set.point_weights(CONFIG, sample(masks, points)))
        np.testing.assert_array_equal(weights.sum(1), CONFIG.points)
        for place, weight, theirs in zip(points, weights, golden[f"{name}.points"], strict=True):
            # Nearly equal logits may be ordered differently: one point of 196 may differ.
            assert len({*map(tuple, place[weight > 0])} & {*map(tuple, theirs)}) >= 195


def random_batch(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    class_logits = jnp.asarray(rng.normal(size=(2, 8, 5, 4)), dtype)
    mask_logits = jnp.asarray(rng.normal(scale=3, size=(2, 8, 5, 6, 7)), dtype)
    labels = rng.choice(np.array([0, 1, 2, 255], np.uint8), size=(8, 12, 14))
    return class_logits, mask_logits, jnp.asarray(labels)


SMALL = LossConfig(points=40)


@jax.jit
def gradient(class_logits, mask_logits, labels):
    """Return ((loss, terms), gradients); compiled once for several tests."""

    def total(class_logits, mask_logits):
        terms = mask_set.mask_set_loss(SMALL, jax.random.key(0), class_logits, mask_logits, labels)
        return sum(terms.values()), terms

    return jax.value_and_grad(total, (0, 1), has_aux=True)(class_logits, mask_logits)


@pytest.mark.parametrize("ignored", ["everything", "one image"])
def test_gradient_is_finite_and_ignored_images_have_no_mask_gradient(ignored):
    class_logits, mask_logits, labels = random_batch()
    labels = labels.at[1 if ignored == "one image" else slice(None)].set(255)
    _, (of_classes, of_masks) = gradient(class_logits, mask_logits, labels)
    assert jnp.isfinite(of_classes).all() and jnp.isfinite(of_masks).all()
    assert (jnp.abs(of_classes).sum((2, 3)) > 0).all()
    assert not of_masks[:, 1].any()
    assert bool(of_masks[:, 0].any()) == (ignored == "one image")


def test_gradient_equals_differences():
    class_logits, mask_logits, labels = random_batch()
    _, (of_classes, of_masks) = gradient(class_logits, mask_logits, labels)
    slope = (of_classes**2).sum() + (of_masks**2).sum()
    step = 1e-2
    ahead, behind = (
        gradient(class_logits + s * of_classes, mask_logits + s * of_masks, labels)[0][0] for s in (step, -step)
    )
    # 2e-2: rounding of a loss near 20, and points that are selected in one case but not in the other.
    np.testing.assert_allclose((ahead - behind) / (2 * step), slope, rtol=2e-2)


def test_sharded_batch_equals_one_device_with_its_gradient():
    batch = random_batch()
    expected = gradient(*batch)
    with jax.set_mesh(parallel.make_mesh(MeshConfig(data=2, fsdp=2, model=2))):
        sharded = gradient(*batch)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), sharded, expected)


def test_low_precision_logits_give_float32_losses():
    (_, exact), _ = gradient(*random_batch())
    for name, value in mask_set_loss(SMALL, jax.random.key(0), *random_batch(jnp.bfloat16)).items():
        assert value.dtype == jnp.float32
        # The logits are rounded to 8 bits.
        np.testing.assert_allclose(value, exact[name], rtol=2e-2)


def test_points_are_split_as_in_the_recipe_and_differ_between_keys():
    config = LossConfig()
    draw = jax.jit(mask_set.draw_points, static_argnums=(0, 2))
    points, others = (draw(config, jax.random.key(seed), 3) for seed in (0, 1))
    assert points.matching.shape == (12544, 2)
    assert points.loss.shape == (3, 37632 + 3136, 2)
    for x, y in zip(points, others, strict=True):
        assert x.min() >= 0 and x.max() < 1 and abs(x.mean() - 0.5) < 0.01
        assert not jnp.array_equal(x, y)
    assert not jnp.array_equal(points.loss[0], points.loss[1])
    weights = mask_set.point_weights(config, jnp.asarray(np.random.default_rng(0).normal(size=(1, 40768))))
    assert (weights[:, :37632].sum(), weights[:, 37632:].sum()) == (9408, 3136)


def test_more_classes_than_queries_matches_every_query():
    class_logits = jnp.zeros((1, 1, 2, 4))
    mask_logits = jnp.zeros((1, 1, 2, 4, 4))
    labels = jnp.asarray([[[0, 1, 2, 2]] * 4], jnp.uint8)
    terms = mask_set_loss(SMALL, jax.random.key(0), class_logits, mask_logits, labels)
    # All logits are 0: every query is matched, cross-entropy log 4 per query and log 2 per point.
    np.testing.assert_allclose(terms["class/last"], 2 * np.log(4), rtol=1e-6)
    np.testing.assert_allclose(terms["mask/last"], 5 * np.log(2), rtol=1e-6)


def test_class_weights_weigh_the_class_term_alone():
    """Two classes and three queries: one query is matched to each class, and the third is "no object"."""
    labels = jnp.asarray([[[0, 0, 1, 1]] * 4], jnp.uint8)
    class_logits = jnp.log(jnp.asarray([[[[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]]]]))
    left, right = (jnp.where(jnp.asarray(labels == label), 9.0, -9.0) for label in (0, 1))
    mask_logits = jnp.stack([left, right, jnp.full((1, 4, 4), -9.0)], axis=1)[None]
    plain, weighted = (
        mask_set_loss(
            LossConfig(points=16, no_object_weight=0.1, class_weights=weights), jax.random.key(0), class_logits,
            mask_logits, labels,
        )
        for weights in (None, (0.5, 4.0))
    )  # fmt: skip
    terms = -np.log([0.7, 0.6, 0.5])
    np.testing.assert_allclose(plain["class/last"], 2 * terms @ [1, 1, 0.1] / 2.1, rtol=1e-5)
    np.testing.assert_allclose(weighted["class/last"], 2 * terms @ [0.5, 4, 0.1] / 4.6, rtol=1e-5)
    assert plain["mask/last"] == weighted["mask/last"] and plain["dice/last"] == weighted["dice/last"]
    config = LossConfig(no_object_weight=0.1, class_weights=(0.5, 4.0))
    np.testing.assert_allclose(mask_set.mask_set_normalisers(config, 3, 2, labels)["class"], 4.6, rtol=1e-6)
