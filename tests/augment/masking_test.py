"""Block masks compared exactly with golden numbers, and properties."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossearth_jax.augment import masking
from crossearth_jax.config import MimTaskConfig, UserError

GOLDEN = pathlib.Path(__file__).parents[1] / "golden/train"
CASES = json.loads((GOLDEN / "block_masks.json").read_text())
ARRAYS = np.load(GOLDEN / "block_masks.npz")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['H']}x{case['W']}")
def test_masks_equal_the_reference(case):
    name, height, width = f"case{case['case']}", case["H"], case["W"]
    assert masking.grid_shape(height, width, case["block"]) == tuple(case["grid"])
    noise = jnp.asarray(ARRAYS[f"{name}.noise"][:, 0])
    for ratio in (0.1, 0.7):
        mask = masking.block_mask(noise, ratio, height, width)
        np.testing.assert_array_equal(mask, ARRAYS[f"{name}.mask_{ratio}"][:, 0].astype(bool))


def test_masks_of_the_training_step_equal_the_reference():
    inputs = np.load(GOLDEN / "train_step_inputs.npz")
    for name, ratio in (("content", 0.1), ("style", 0.7)):
        mask = masking.block_mask(jnp.asarray(inputs[f"{name}_noise"][:, 0]), ratio, 64, 64)
        np.testing.assert_array_equal(mask, inputs[f"{name}_mask"][:, 0].astype(bool))


def test_small_crops_scale_the_block():
    blocks = [masking.scaled_block(64, crop) for crop in (32, 64, 128, 256, 384, 512, 1024)]
    assert blocks == [4, 8, 16, 32, 48, 64, 64]
    assert masking.scaled_block(64, 2) == 1


def test_random_masks_drop_the_ratio_independently_per_image():
    draw = jax.jit(masking.random_block_masks, static_argnums=range(1, 6))
    masks = np.asarray(draw(jax.random.key(0), 0.3, 8, (100,), 64, 64))
    np.testing.assert_allclose(masks.mean(), 0.7, atol=0.02)
    grid = masks[:, ::8, ::8]
    np.testing.assert_array_equal(np.repeat(np.repeat(grid, 8, 1), 8, 2), masks)
    assert np.abs(np.corrcoef(grid.reshape(100, 64)) - np.eye(100)).max() < 0.7
    assert not masking.block_mask(jnp.full((1, 2, 2), 0.999), 1.0, 16, 16).any()


def test_block_larger_than_the_image_is_refused():
    with pytest.raises(UserError, match="no block of 64 pixels fits into 32 x 64"):
        masking.grid_shape(32, 64, 64)


def test_content_mask_hides_nothing_of_the_padding():
    images, inside = jnp.ones((1, 16, 16, 3)), jnp.zeros((1, 16, 16), bool).at[:, :8].set(True)
    token = jnp.full((16, 16, 3), 7.0)
    masked = masking.content_mask(MimTaskConfig(mask_ratio=1.0), jax.random.key(0), images, token, inside)
    np.testing.assert_array_equal(masked[0, :8], 7)
    np.testing.assert_array_equal(masked[0, 8:], 1)


def test_content_mask_shows_the_token_in_dropped_blocks_only():
    images, token = jnp.zeros((50, 32, 32, 3)), jnp.arange(64 * 64 * 3.0).reshape(64, 64, 3) + 1

    def masked(token):
        return masking.content_mask(MimTaskConfig(mask_ratio=0.3), jax.random.key(0), images, token)

    result, gradient = jax.jit(lambda token: (masked(token), jax.grad(lambda t: masked(t).sum())(token)))(token)
    dropped = np.asarray(result != 0)
    np.testing.assert_allclose(dropped.mean(), 0.3, atol=0.03)
    expected = np.broadcast_to(token[:32, :32], result.shape)
    np.testing.assert_array_equal(np.asarray(result)[dropped], expected[dropped])
    np.testing.assert_array_equal(gradient[:32, :32], dropped.sum(0))
    assert not gradient[32:].any() and not gradient[:, 32:].any()
    with pytest.raises(UserError, match="larger than the mask token of 16"):
        masked(token[:16, :16])
