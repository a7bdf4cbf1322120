"""Random block masks: which blocks of an image are kept and which are replaced.

A coarse grid of uniform noise is compared with a ratio and enlarged to the image by nearest neighbour. The content mask
of masked image modelling and the style mask of Earth-Style Injection are drawn by the same function.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from crossearth_jax.config import MimTaskConfig, UserError

FULL_CROP = 512  # pixels; crops of this side and larger use the configured block size unchanged


def scaled_block(block_size: int, crop_size: int) -> int:
    """Return the block size for a crop, scaled down in proportion for crops below 512 pixels.

    So with blocks of 64 pixels small crops keep a grid of 8 x 8 blocks.
    """
    return max(1, round(block_size * min(crop_size, FULL_CROP) / FULL_CROP))


def grid_shape(height: int, width: int, block: int) -> tuple[int, int]:
    """Return the (rows, columns) of blocks in an image; halves are rounded to the even number, as in the reference.

    Raises:
      UserError: a side is at most half a block, so there would be no block.
    """
    rows, columns = round(height / block), round(width / block)
    if rows == 0 or columns == 0:
        raise UserError(
            f"no block of {block} pixels fits into {height} x {width}; use a smaller block_size or a larger crop_size"
        )
    return rows, columns


def block_mask(
    noise: Float[Array, "*b rows columns"], ratio: float, height: int, width: int
) -> Bool[Array, "*b {height} {width}"]:
    """Keep the blocks whose noise is above the ratio, compared in float32; True = kept.

    Args:
      noise: uniform in [0, 1), one number per block.
      ratio: expected share of blocks that are not kept.
      height: of the mask; its row i belongs to grid row floor(i * rows / height).
      width: of the mask; its columns likewise.
    """
    rows, columns = noise.shape[-2:]
    kept = noise > jnp.float32(ratio)
    kept = jnp.take(kept, np.arange(height) * rows // height, axis=-2)
    return jnp.take(kept, np.arange(width) * columns // width, axis=-1)


def random_block_masks(
    key: Key[Array, ""], ratio: float, block: int, batch: tuple[int, ...], height: int, width: int
) -> Bool[Array, "*b {height} {width}"]:
    """Draw one block mask per image of a batch (one or more leading axes); True = kept."""
    noise = jax.random.uniform(key, (*batch, *grid_shape(height, width, block)))
    return block_mask(noise, ratio, height, width)


def content_mask(
    config: MimTaskConfig,
    key: Key[Array, ""],
    images: Float[Array, "b h w 3"],
    token: Float[Array, "t t 3"],
    inside: Bool[Array, "b h w"] | None = None,
) -> Float[Array, "b h w 3"]:
    """Replace random blocks of normalised images by the learnable pixel mask token, cropped to the image.

    Args:
      config: share and size of the blocks.
      key: random key.
      images: normalised.
      token: the pixel mask token, at least as large as the images.
      inside: which pixels are not padding; padding is not replaced. None: all.

    Raises:
      UserError: the images are larger than the token.
    """
    *batch, height, width, _ = images.shape
    if max(height, width) > len(token):
        raise UserError(
            f"images of {height} x {width} are larger than the mask token of {len(token)}; raise model.mim.token_size"
        )
    block = scaled_block(config.block_size, min(height, width))
    kept = random_block_masks(key, config.mask_ratio, block, tuple(batch), height, width)
    if inside is not None:
        kept |= ~inside
    return jnp.where(kept[..., None], images, token[:height, :width])
