"""Style injection compared with golden numbers of style-augmentation and CrossEarth's step, and properties."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from PIL import Image

from crossearth_jax.augment import style_injection
from crossearth_jax.config import MeshConfig, StyleConfig, UserError
from crossearth_jax.models.style_network import StyleNetwork
from crossearth_jax.ops.normalization import denormalize, normalize
from crossearth_jax.runtime import parallel
from crossearth_jax.weights.style_files import load_style
from crossearth_jax.weights.style_statistics import load_statistics

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = pathlib.Path(__file__).parents[1] / "golden/train"
STATISTICS = style_injection.StyleStatistics(np.full(100, 0.2, np.float32), 0.1 * np.eye(100, dtype=np.float32))
SIDE = 32


class Mirror:
    """A style network that returns images unchanged."""

    def encode(self, params, images):
        return jnp.zeros((len(images), 100))

    def stylize(self, params, images, codes):
        return images


class Tint:
    """A style network that changes brightness by the code, so that results can be computed by hand."""

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
    shown = style_injection.restyle(StyleConfig(), Stored(), PARAMS, STATISTICS, draws, jnp.asarray(images))
    if case == "normalised":
        shown, expected = denormalize(normalize(255 * shown)) / 255, denormalize(jnp.asarray(expected)) / 255
    kept = kept & np.ones(3, bool)
    np.testing.assert_allclose(np.asarray(shown)[~kept], np.asarray(expected)[~kept], atol=1e-6)
    # Truncation to 8 bits may differ by one level.
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
    # A loop instead of vmap, so that the random choice remains a branch, as in a training step.
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


@pytest.mark.parametrize("detail", ["network", "low", "scaled"])
def test_sharded_batch_gives_the_same_without_moving_images(detail):
    mesh, config = parallel.make_mesh(MeshConfig()), StyleConfig(probability=0.3, detail=detail)
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
        return style_injection.restyle(StyleConfig(alpha=0.5), Tint(), params, STATISTICS, draws, batch(2)).sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(PARAMS)
    assert value > 0 and gradient["style/gain"] == 0
    assert total({"style/gain": jnp.full((), 0.5)}) != value


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"style\.probability is 1\.5"):
        style_injection.style_injection(StyleConfig(probability=1.5), Mirror(), STATISTICS)
    with pytest.raises(UserError, match="batch of 6 images is not divisible by 4 data shards; choose a multiple of 4"):
        style_injection.style_injection(StyleConfig(), Mirror(), STATISTICS, 4)(PARAMS, jax.random.key(0), batch(6))


def test_padding_is_mirrored_for_the_style_network():
    row = jnp.array([0.0, 1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0])
    image = jnp.tile(row[:, None] * jnp.ones(3), (2, 1, 1))
    inside = jnp.tile(row > 0, (2, 1))
    found = style_injection.mirror_into_padding(image, inside)
    np.testing.assert_array_equal(found[..., 0], np.tile([1, 1, 2, 3, 3, 2, 1, 1], (2, 1)))


@pytest.mark.parametrize("detail", ["network", "scaled"])
def test_padding_changes_no_style_and_stays_as_it_is(detail):
    config = StyleConfig(probability=1.0, alpha=0.3, mask_ratio=1.0, detail=detail)
    inject, small = injection(Tint, config), batch(2, side=SIDE // 2)
    padded = jnp.pad(small, ((0, 0), (0, SIDE // 2), (0, SIDE // 2), (0, 0)))
    inside = jnp.zeros(padded.shape[:3], bool).at[:, : SIDE // 2, : SIDE // 2].set(True)
    shown, styled = inject(PARAMS, jax.random.key(1), padded, inside)
    expected, _ = inject(PARAMS, jax.random.key(1), small)
    assert styled.all() and jnp.abs(expected - small).max() > 0.1
    np.testing.assert_allclose(shown[:, : SIDE // 2, : SIDE // 2], expected, atol=1e-5)
    np.testing.assert_array_equal(jnp.where(inside[..., None], 0, shown), 0)


def test_low_adds_the_change_of_cells_interpolated_between_their_centres():
    # The network makes the left half brighter by 0.2, and adds noise whose mean over every cell is 0.
    noise = jnp.where((jnp.arange(32)[:, None] + jnp.arange(32)) % 2 == 0, 0.3, -0.3)
    change = jnp.where(jnp.arange(32) < 16, 0.2, 0.0)[None, :, None]
    images = jnp.full((1, 32, 32, 3), 0.4).at[0, 5, 3].set(0.95)
    config = StyleConfig(detail="low", cell_size=256, draw_scale=1.0)  # cells of 16 pixels
    found = style_injection.redraw(config, lambda x, codes: x + change + noise[..., None], images, jnp.zeros((1, 100)))
    # The centres of the cells are at 7.5 and 23.5; between them the change falls by 0.2 / 16 per pixel.
    expected = np.clip(0.2 * (1 - (np.arange(32) - 7.5) / 16), 0, 0.2)
    np.testing.assert_allclose(found[0, 0], np.tile(0.4 + expected[:, None], 3), atol=1e-6)
    np.testing.assert_allclose(found[0, 5, 3], 1.0, atol=1e-6)  # clipped


def test_low_lets_the_network_draw_a_smaller_image():
    seen = []

    def stylize(images, codes):
        seen.append(images)
        return images + 0.1

    images = jnp.asarray(np.random.default_rng(0).uniform(0, 0.5, (2, 32, 48, 3)), jnp.float32)
    found = style_injection.redraw(StyleConfig(detail="low"), stylize, images, jnp.zeros((2, 100)))
    np.testing.assert_allclose(found, images + 0.1, atol=1e-6)
    np.testing.assert_allclose(seen[0], rearrange(images, "b (h p) (w q) c -> b h w c (p q)", p=2, q=2).mean(-1))


@functools.cache
def restyled_forest(detail):
    """Return an aerial photograph, and its versions in three sampled styles for a value of `detail`, in [0, 1]."""
    network, statistics = StyleNetwork("mobile"), load_statistics(None, "mobile").sampler
    params = load_style(network)
    with Image.open(ROOT / "data" / "scenes" / "neon_osbs_029.tif") as picture:
        image = np.asarray(picture)[:256, :256].astype(np.float32) / 255
    images = jnp.tile(image, (3, 1, 1, 1))
    noise = jax.random.normal(jax.random.key(0), (3, 100))
    codes = jax.jit(network.encode)(params, images)
    codes = style_injection.mix_codes(0.5, style_injection.sample_codes(statistics, noise), codes)
    draw = jax.jit(functools.partial(network.stylize, params))
    return image, np.asarray(style_injection.redraw(StyleConfig(detail=detail), draw, images, codes))


def gradients_kept(image, restyled):
    """Return the correlation of the differences between neighbouring pixels."""
    pairs = [[np.diff(x, axis=axis).ravel() for axis in (0, 1)] for x in (image, restyled)]
    return np.corrcoef(*map(np.concatenate, pairs))[0, 1]


def test_low_keeps_the_detail_that_the_network_blurs():
    kept = {}
    for detail in ("network", "scaled", "low"):
        image, restyled = restyled_forest(detail)
        kept[detail] = min(gradients_kept(image, one) for one in restyled)
        assert restyled.min() >= 0 and restyled.max() <= 1
    assert kept["low"] > 0.9 > kept["scaled"] > kept["network"] + 0.05


@pytest.mark.parametrize("detail", ["low", "scaled"])
def test_mean_colour_moves_as_far_as_with_the_whole_drawn_image(detail):
    image, whole = restyled_forest("network")
    expected = whole.mean((1, 2)) - image.mean((0, 1))
    found = restyled_forest(detail)[1].mean((1, 2)) - image.mean((0, 1))
    assert np.all(np.linalg.norm(expected, axis=-1) > 0.05)
    assert np.all(np.linalg.norm(found - expected, axis=-1) < 0.1 * np.linalg.norm(expected, axis=-1))


def test_literal_mode_always_shows_the_whole_drawn_image():
    images = batch(4)
    expected = injection(Tint, StyleConfig(probability=1.0, literal=True))(PARAMS, jax.random.key(0), images)[0]
    found = injection(Tint, StyleConfig(probability=1.0, literal=True, detail="low"))(PARAMS, jax.random.key(0), images)
    np.testing.assert_array_equal(found[0], expected)


def test_padding_stays_as_it_is_and_reaches_no_cell_when_low_frequencies_change():
    config = StyleConfig(probability=1.0, alpha=0.3, mask_ratio=1.0, detail="low", cell_size=128)  # cells of 8 pixels
    inside = jnp.zeros((2, SIDE, SIDE), bool).at[:, : SIDE // 2, : SIDE // 2].set(True)
    images = jnp.where(inside[..., None], batch(2), 0.0)
    shown, _ = injection(Tint, config)(PARAMS, jax.random.key(1), images, inside)
    np.testing.assert_array_equal(jnp.where(inside[..., None], 0, shown), 0)
    # The image without padding, with cells of the same size. Beyond the last centre of a cell nothing is interpolated.
    alone = injection(Tint, dataclasses.replace(config, cell_size=256))
    expected, _ = alone(PARAMS, jax.random.key(1), images[:, : SIDE // 2, : SIDE // 2])
    np.testing.assert_allclose(shown[:, :12, :12], expected[:, :12, :12], atol=1e-5)
    assert jnp.abs(shown - images)[:, :12, :12].mean() > 0.1
