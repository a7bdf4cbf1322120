"""Golden numbers (style-augmentation, CrossEarth's step) and properties of the injection."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from crossearth_jax.augment import style_injection
from crossearth_jax.config import MeshConfig, StyleConfig, UserError
from crossearth_jax.ops.normalization import denormalize, normalize
from crossearth_jax.runtime import parallel

GOLDEN = pathlib.Path(__file__).parents[1] / "golden/train"
STATISTICS = style_injection.StyleStatistics(np.full(100, 0.2, np.float32), 0.1 * np.eye(100, dtype=np.float32))
SIDE = 32


class Mirror:
    """Gives images back as they are."""

    def encode(self, params, images):
        return jnp.zeros((len(images), 100))

    def stylize(self, params, images, codes):
        return images


class Tint:
    """Shades the image by the code: a style network whose result can be computed by hand."""

    def encode(self, params, images):
        return jnp.tile(images.mean((1, 2)) * params["style/gain"], (1, 34))[:, :100]

    def stylize(self, params, images, codes):
        return jnp.clip(0.5 * images + 0.25 * codes[:, None, None, :3] * params["style/gain"], 0, 1)


PARAMS = {"style/gain": jnp.ones(())}


def batch(size, side=SIDE):
    return normalize(jnp.asarray(np.random.default_rng(0).integers(0, 256, (size, side, side, 3), np.uint8)))


@functools.cache
def injection(backend, config, shards=1):
    return jax.jit(style_injection.style_injection(config, backend(), STATISTICS, shards))


def test_eight_bit_round_trip_equals_the_reference():
    arrays = np.load(GOLDEN / "denorm_8bit.npz")
    normalised = jnp.asarray(rearrange(arrays["normalised"], "c n -> n 1 c"))
    levels = 255 * np.asarray(style_injection.to_eight_bit(normalised))[:, 0]
    np.testing.assert_allclose(levels, np.tile(np.arange(256)[:, None], (1, 3)), atol=1e-4)
    difference = np.abs(levels.T - arrays["restored"]) > 0.5
    assert difference.sum() == 7 and np.abs(levels.T - arrays["restored"]).max() < 1.01
    np.testing.assert_allclose(style_injection.to_eight_bit(jnp.asarray([[[9.0, -9.0, 9.0]]])), [[[1, 0, 1]]])


def test_sampled_and_mixed_codes_equal_the_reference():
    arrays = np.load(GOLDEN / "style_augmentor.npz")
    mean = np.load(GOLDEN / "style_statistics_pbn.npz")["mean"].astype(np.float32)
    sampled = style_injection.sample_codes(
        style_injection.StyleStatistics(mean, arrays["A"].astype(np.float32)), jnp.asarray(arrays["z"])
    )
    np.testing.assert_allclose(sampled, arrays["sampled"], atol=1e-6)
    mixed = style_injection.mix_codes(0.1, sampled[:2], jnp.asarray(arrays["base"]))
    np.testing.assert_allclose(mixed, arrays["mixed_alpha0.1"], atol=1e-6)


@pytest.mark.parametrize("case", ["literal", "normalised"])
def test_segmentation_input_equals_the_reference(case):
    inputs, step = np.load(GOLDEN / "train_step_inputs.npz"), np.load(GOLDEN / f"train_step_styled_{case}.npz")
    images, redrawn, kept, original, expected = (
        rearrange(array, "b c h w -> b h w c")
        for array in (
            inputs["input"],
            inputs["styled_image"],
            inputs["style_mask"].astype(bool),
            step["augmentor_input"],
            step["segmentation_input"],
        )
    )

    class Stored(Mirror):
        def stylize(self, params, images, codes):
            np.testing.assert_allclose(images, original, atol=1.001 / 255)
            return jnp.asarray(redrawn)

    draws = style_injection.StyleDraws(jnp.zeros((1, 100)), jnp.asarray(kept[..., 0]))
    shown = style_injection.restyle(0.1, Stored(), PARAMS, STATISTICS, draws, jnp.asarray(images))
    if case == "normalised":
        shown, expected = denormalize(normalize(255 * shown)) / 255, denormalize(jnp.asarray(expected)) / 255
    kept = kept & np.ones(3, bool)
    np.testing.assert_allclose(np.asarray(shown)[~kept], np.asarray(expected)[~kept], atol=1e-6)
    # Truncation to 8 bit may turn out one level apart.
    np.testing.assert_allclose(np.asarray(shown)[kept], np.asarray(expected)[kept], atol=1.001 / 255)


@pytest.mark.parametrize(
    ("backend", "config"),
    [
        (Mirror, StyleConfig(probability=1.0, alpha=0.0)),
        (Tint, StyleConfig(probability=1.0, mask_ratio=-1.0)),
        (Tint, StyleConfig(probability=0.0)),
    ],
    ids=["identity network", "everything kept", "never"],
)
def test_identities(backend, config):
    images = batch(4)
    shown, styled = injection(backend, config)(PARAMS, jax.random.key(0), images)
    np.testing.assert_allclose(shown, images, atol=1e-5)
    assert bool(styled.all()) == bool(styled.any()) == (config.probability == 1)


def test_every_styled_pixel_is_kept_or_redrawn_in_a_mixed_style():
    images, config = batch(64), StyleConfig(probability=1.0, alpha=0.25)
    shown, _ = injection(Tint, config)(PARAMS, jax.random.key(1), images)
    shown, original = np.asarray(denormalize(shown)) / 255, np.asarray(style_injection.to_eight_bit(images))
    redrawn = np.abs(shown - original).max(-1) > 1e-4
    blocks = rearrange(redrawn, "b (h p) (w q) -> b h w (p q)", p=SIDE // 8, q=SIDE // 8).mean(-1)
    np.testing.assert_allclose(blocks.mean(), config.mask_ratio, atol=0.03)
    assert np.all((blocks < 0.2) | (blocks > 0.8))
    own = original.mean((1, 2))
    codes = np.stack([(4 * (s - 0.5 * o))[r].mean(0) for s, o, r in zip(shown, original, redrawn, strict=True)])
    sampled = (codes - 0.75 * own) / 0.25
    np.testing.assert_allclose(sampled.mean(), 0.2, atol=0.03)
    np.testing.assert_allclose(sampled.std(), 0.1, atol=0.02)


def test_output_stays_in_range_and_others_are_untouched():
    images = batch(16)
    shown, styled = injection(Tint, StyleConfig(probability=0.25))(PARAMS, jax.random.key(2), images)
    values = np.asarray(denormalize(shown))
    assert values.min() > -1e-3 and values.max() < 255.001
    assert styled.sum() == 4
    np.testing.assert_array_equal(np.asarray(shown)[~np.asarray(styled)], np.asarray(images)[~np.asarray(styled)])
    assert np.all(np.any(np.asarray(shown != images)[np.asarray(styled)], axis=(1, 2, 3)))


@pytest.mark.parametrize(("size", "shards", "probability"), [(4, 1, 0.1), (8, 2, 0.35)])
def test_every_image_is_styled_with_the_probability(size, shards, probability):
    config = StyleConfig(probability=probability)
    inject = style_injection.style_injection(config, Mirror(), STATISTICS, shards)
    images = batch(size, 8)
    # A loop instead of vmap: the coin stays a branch, as in a training step.
    draw = jax.jit(lambda keys: jax.lax.map(lambda key: inject(PARAMS, key, images)[1], keys))
    styled = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    np.testing.assert_allclose(styled.mean(0), probability, atol=0.03)
    counts = rearrange(styled, "n (g s) -> n g s", g=shards).sum(-1)
    expected = probability * size / shards
    assert counts.min() == np.floor(expected) and counts.max() == np.ceil(expected)
    assert np.all(counts == counts[:, :1])


def test_deterministic_in_the_key():
    images, inject = batch(16), injection(Tint, StyleConfig(probability=0.25))
    first, again, other = (inject(PARAMS, jax.random.key(seed), images) for seed in (5, 5, 6))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert np.any(np.asarray(first[0] != other[0]))


def test_sharded_batch_gives_the_same_without_moving_images():
    mesh, config = parallel.make_mesh(MeshConfig()), StyleConfig(probability=0.3)
    images = batch(32)
    plain = injection(Tint, config, 8)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(images, parallel.batch_sharding(mesh))
        params = jax.device_put(PARAMS, parallel.replicated(mesh))
        inject = jax.jit(style_injection.style_injection(config, Tint(), STATISTICS, 8))
        compiled = inject.lower(params, jax.random.key(0), sharded).compile()
        results = [compiled(params, jax.random.key(seed), sharded) for seed in range(4)]
    assert not any(word in compiled.as_text() for word in ("all-reduce", "all-gather", "all-to-all", "permute("))
    counts = set()
    for seed, result in enumerate(results):
        expected = plain(PARAMS, jax.random.key(seed), images)
        np.testing.assert_array_equal(result[1], expected[1])
        np.testing.assert_allclose(result[0], expected[0], atol=1e-5)
        counts.add(int(result[1].sum()))
    assert counts == {8, 16}


def test_literal_mode_styles_the_whole_batch_in_unit_range():
    config = StyleConfig(probability=0.5, literal=True)
    images, inject = batch(4), injection(Tint, config)
    coins = []
    for seed in range(8):
        shown, styled = inject(PARAMS, jax.random.key(seed), images)
        coins.append(bool(styled[0]))
        assert bool(styled.all()) == bool(styled.any())
        if coins[-1]:
            assert shown.min() >= 0 and shown.max() <= 1
        else:
            np.testing.assert_array_equal(shown, images)
    assert 0 < sum(coins) < 8


def test_no_gradient_reaches_the_style_network():
    draws = style_injection.StyleDraws(jnp.ones((2, 100)), jnp.zeros((2, SIDE, SIDE), bool))

    def total(params):
        return style_injection.restyle(0.5, Tint(), params, STATISTICS, draws, batch(2)).sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(PARAMS)
    assert value > 0 and gradient["style/gain"] == 0
    assert total({"style/gain": jnp.full((), 0.5)}) != value


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"style\.probability is 1\.5"):
        style_injection.style_injection(StyleConfig(probability=1.5), Mirror(), STATISTICS)
    with pytest.raises(UserError, match="batch of 6 images does not divide into 4 data shards"):
        style_injection.style_injection(StyleConfig(), Mirror(), STATISTICS, 4)(PARAMS, jax.random.key(0), batch(6))


def test_padding_is_mirrored_for_the_style_network():
    row = jnp.array([0.0, 1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0])
    image = jnp.tile(row[:, None] * jnp.ones(3), (2, 1, 1))
    inside = jnp.tile(row > 0, (2, 1))
    found = style_injection.mirror_into_padding(image, inside)
    np.testing.assert_array_equal(found[..., 0], np.tile([1, 1, 2, 3, 3, 2, 1, 1], (2, 1)))


def test_padding_changes_no_style_and_stays_as_it_is():
    config = StyleConfig(probability=1.0, alpha=0.3, mask_ratio=1.0)
    inject, small = injection(Tint, config), batch(2, side=SIDE // 2)
    padded = jnp.pad(small, ((0, 0), (0, SIDE // 2), (0, SIDE // 2), (0, 0)))
    inside = jnp.zeros(padded.shape[:3], bool).at[:, : SIDE // 2, : SIDE // 2].set(True)
    shown, styled = inject(PARAMS, jax.random.key(1), padded, inside)
    expected, _ = inject(PARAMS, jax.random.key(1), small)
    assert styled.all() and jnp.abs(expected - small).max() > 0.1
    np.testing.assert_allclose(shown[:, : SIDE // 2, : SIDE // 2], expected, atol=1e-5)
    np.testing.assert_array_equal(jnp.where(inside[..., None], 0, shown), 0)
