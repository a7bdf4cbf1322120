"""Earth-Style Injection: parts of some training images get a style sampled from a distribution of Earth imagery.

The style code of an image is mixed with a code drawn from a Gaussian, a style transfer network redraws the image in the
mixed style, and random blocks of the image are replaced by the redrawn pixels. The network is an argument
(`StyleBackend`).

The network blurs images. `StyleConfig.detail` says how much of its output a restyled pixel takes (see `redraw`).

Only the images that are restyled go through the network. Every data shard of s images restyles the same number of them:
`floor(p s)`, or one more, by one random choice for all shards. So every image is restyled with exactly the probability
p, no image changes device, and no shard waits for another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Float32, Int, Key

from crossearth_jax.augment.masking import grid_shape, random_block_masks, scaled_block
from crossearth_jax.config import StyleConfig, UserError
from crossearth_jax.ops.normalization import denormalize, normalize
from crossearth_jax.ops.resize import resize_area, resize_bilinear
from crossearth_jax.runtime import parallel

Params = Mapping[str, jax.Array]
Stylize = Callable[[Float32[Array, "b h w 3"], Float[Array, "b k"]], Float32[Array, "b h w 3"]]  # (images, codes)

DRAW_SCALES = {"low": 0.5, "scaled": 2.0}  # by `StyleConfig.detail`; used if `StyleConfig.draw_scale` is None


@runtime_checkable
class Injection(Protocol):
    """Earth-Style Injection in the form in which the training step calls it."""

    def __call__(
        self,
        params: Params,
        key: Key[Array, ""],
        images: Float32[Array, "b h w 3"],
        inside: Bool[Array, "b h w"] | None = None,
        /,
    ) -> tuple[Float32[Array, "b h w 3"], Bool[Array, " b"]]:
        """Restyle some of the images; return all images, and which are restyled.

        Args:
          params: parameters of the style network (`style/…`); others are ignored.
          key: random key.
          images: normalised.
          inside: which pixels of each image are not padding, a rectangle; None if there is no padding.
        """
        ...


@runtime_checkable
class StyleBackend(Protocol):
    """A style network without its parameters; images are in [0, 1]."""

    def encode(self, params: Params, images: Float[Array, "b h w 3"]) -> Float[Array, "b k"]:
        """Compute the style codes of images."""
        ...

    def stylize(
        self, params: Params, images: Float[Array, "b h w 3"], codes: Float[Array, "b k"]
    ) -> Float[Array, "b h w 3"]:
        """Redraw images in the styles of the codes."""
        ...


class StyleStatistics(NamedTuple):
    """Gaussian distribution of style codes, with covariance = factor @ factor.T."""

    mean: Float[np.ndarray, " k"]
    factor: Float[np.ndarray, "k k"]


class StyleDraws(NamedTuple):
    """The random choices for a batch: standard normal numbers, and which pixels keep the original image."""

    noise: Float[Array, "*b k"]
    kept: Bool[Array, "*b h w"]


def style_injection(
    config: StyleConfig, backend: StyleBackend, statistics: StyleStatistics, shards: int = 1
) -> Injection:
    """Build the injection. No gradient flows into the style network.

    Padding must not influence the style. So it is filled with the mirrored image as input of the network, and the
    padding of the result is that of the original image. With `config.literal` padding is restyled, as in the reference.

    Args:
      config: probability, mixing share, mask ratio, block size; `literal` selects the reference's behaviour.
      backend: the style network.
      statistics: distribution of this network's codes.
      shards: number of equal parts of the batch that choose their restyled images independently. It must be a multiple
        of the number of data shards, so that no image changes device.

    Raises:
      UserError: the probability is outside [0, 1].
    """
    if not 0 <= config.probability <= 1:
        raise UserError(f"style.probability is {config.probability}, expected a number from 0 to 1")
    if config.literal:
        return functools.partial(inject_literal, config, backend, statistics)
    return functools.partial(inject, config, backend, statistics, shards)


def inject(
    config: StyleConfig,
    backend: StyleBackend,
    statistics: StyleStatistics,
    shards: int,
    params: Params,
    key: Key[Array, ""],
    images: Float32[Array, "b h w 3"],
    inside: Bool[Array, "b h w"] | None = None,
) -> tuple[Float32[Array, "b h w 3"], Bool[Array, " b"]]:
    """Restyle each image with the configured probability and normalise the result again.

    Raises:
      UserError: the batch size is not divisible by the number of shards.
    """
    if len(images) % shards:
        raise UserError(
            f"a batch of {len(images)} images is not divisible by {shards} data shards; choose a multiple of {shards}"
        )
    size, height, width = len(images) // shards, *images.shape[1:3]
    always, remainder = divmod(round(config.probability * size, 9), 1)
    fewest, most = int(always), int(always) + (remainder > 0)
    coin_key, order_key, draw_key = jax.random.split(key, 3)
    one_more = jax.random.uniform(coin_key) < remainder
    order = jnp.argsort(jax.random.uniform(order_key, (shards, size)), axis=1)
    draws = draw_style(config, statistics, draw_key, (shards, most), height, width)

    def of_shard(*pieces: Any) -> tuple[Array, Array]:
        branches = [functools.partial(restyle_some, config, backend, statistics, n, params) for n in (most, fewest)]
        return jax.lax.cond(one_more, *branches, *pieces) if most > fewest else branches[0](*pieces)

    pieces = rearrange(images, "(g s) h w c -> g s h w c", g=shards)
    masks = () if inside is None else (rearrange(inside, "(g s) h w -> g s h w", g=shards),)
    shown, styled = parallel.per_example(of_shard)(draws, order, pieces, *masks)
    return rearrange(shown, "g s h w c -> (g s) h w c"), rearrange(styled, "g s -> (g s)")


def restyle_some(
    config: StyleConfig,
    backend: StyleBackend,
    statistics: StyleStatistics,
    count: int,
    params: Params,
    draws: StyleDraws,
    order: Int[Array, " s"],
    images: Float32[Array, "s h w 3"],
    inside: Bool[Array, "s h w"] | None = None,
) -> tuple[Float32[Array, "s h w 3"], Bool[Array, " s"]]:
    """Restyle the first `count` images in the given order with the first draws; leave the others unchanged."""
    if count == 0:
        return images, jnp.zeros(len(images), bool)
    chosen, draws = images[order[:count]], jax.tree.map(lambda x: x[:count], draws)
    if inside is not None:
        chosen = jax.vmap(mirror_into_padding)(chosen, inside[order[:count]])
    restyled = normalize(255 * restyle(config, backend, params, statistics, draws, chosen))
    rank = jnp.argsort(order)
    styled = rank < count
    # A gather in place of a scatter: image i takes the restyled image rank[i] if it was restyled.
    spread = restyled[jnp.minimum(rank, count - 1)]
    changed = styled[:, None, None] if inside is None else styled[:, None, None] & inside
    return jnp.where(changed[..., None], spread, images), styled


def mirror_into_padding(image: Float32[Array, "h w 3"], inside: Bool[Array, "h w"]) -> Float32[Array, "h w 3"]:
    """Fill the padding of an image by reflection at the image's borders, repeated as often as needed.

    Args:
      image: with padding.
      inside: which pixels are not padding, a rectangle.
    """

    def sources(filled: Bool[Array, " n"]) -> Int[Array, " n"]:
        first, length = jnp.argmax(filled), jnp.maximum(filled.sum(), 1)
        place = (jnp.arange(len(filled)) - first) % (2 * length)
        return first + jnp.minimum(place, 2 * length - 1 - place)

    return image[sources(inside.any(1))][:, sources(inside.any(0))]


def inject_literal(
    config: StyleConfig,
    backend: StyleBackend,
    statistics: StyleStatistics,
    params: Params,
    key: Key[Array, ""],
    images: Float32[Array, "b h w 3"],
    inside: Bool[Array, "b h w"] | None = None,
) -> tuple[Float32[Array, "b h w 3"], Bool[Array, " b"]]:
    """Restyle as the reference's code does: all images of a batch or none; restyled images are in [0, 1].

    So the backbone receives restyled images on another scale than clean ones, almost certainly by mistake. Padding is
    restyled like the image.
    """
    del inside
    coin_key, draw_key = jax.random.split(key)
    coin = jax.random.uniform(coin_key) < config.probability

    def styled_batch() -> Float32[Array, "b h w 3"]:
        draws = draw_style(config, statistics, draw_key, images.shape[:1], *images.shape[1:3])
        return restyle(config, backend, params, statistics, draws, images)

    shown = jax.lax.cond(coin, styled_batch, lambda: images)
    return shown, jnp.full(len(images), coin)


def draw_style(
    config: StyleConfig,
    statistics: StyleStatistics,
    key: Key[Array, ""],
    batch: tuple[int, ...],
    height: int,
    width: int,
) -> StyleDraws:
    """Draw a style and a block mask for every image of a batch (one or more leading axes)."""
    noise_key, mask_key = jax.random.split(key)
    block = scaled_block(config.block_size, min(height, width))
    return StyleDraws(
        noise=jax.random.normal(noise_key, (*batch, len(statistics.mean))),
        kept=random_block_masks(mask_key, config.mask_ratio, block, batch, height, width),
    )


def restyle(
    config: StyleConfig,
    backend: StyleBackend,
    params: Params,
    statistics: StyleStatistics,
    draws: StyleDraws,
    images: Float32[Array, "b h w 3"],
) -> Float32[Array, "b h w 3"]:
    """Restyle normalised images where the mask does not keep the original; the result is in [0, 1].

    The original is first reduced to 8 bits, as in the reference.
    """
    originals = to_eight_bit(images)
    codes = mix_codes(config.alpha, sample_codes(statistics, draws.noise), backend.encode(params, originals))
    redrawn = redraw(config, functools.partial(backend.stylize, params), originals, codes)
    return jax.lax.stop_gradient(jnp.where(draws.kept[..., None], originals, redrawn))


def redraw(
    config: StyleConfig,
    stylize: Stylize,
    originals: Float32[Array, "b h w 3"],
    codes: Float[Array, "b k"],
) -> Float32[Array, "b h w 3"]:
    """Redraw images in [0, 1] in the styles of the codes, with as much of their detail as `config.detail` says.

    - "network": the output of the network.
    - "scaled": the image is enlarged by `config.draw_scale`, redrawn and averaged back to its size, so the blur of the
      network extends over fewer pixels of the original.
    - "low": all detail is kept. The change of colour (redrawn minus original) is averaged over cells of
      `config.cell_size` pixels (in proportion at crops below 512 pixels), interpolated bilinearly and added to the
      original; the sum is clipped to [0, 1]. Detail of the redrawn image does not matter here, so the image is resized
      by `config.draw_scale` (default 0.5) before it is redrawn, which saves time.
    """
    if config.literal or config.detail == "network":
        return stylize(originals, codes)
    height, width = originals.shape[1:3]
    scale = config.draw_scale or DRAW_SCALES[config.detail]
    drawn_size = max(1, round(scale * height)), max(1, round(scale * width))
    sources = resize_bilinear(originals, drawn_size) if scale > 1 else resize_area(originals, drawn_size)
    drawn = stylize(sources, codes)
    if config.detail == "scaled":
        return resize_area(drawn, (height, width))
    cells = grid_shape(height, width, scaled_block(config.cell_size, min(height, width)))
    change = resize_bilinear(resize_area(drawn - sources, cells), (height, width))
    return jnp.clip(originals + change, 0, 1)


def to_eight_bit(images: Float32[Array, "*b h w 3"]) -> Float32[Array, "*b h w 3"]:
    """Turn normalised images into multiples of 1/255 in [0, 1], truncated.

    A small number is added before truncation, so that pixels that were whole numbers before normalisation get the same
    number back. Without it, as in the reference, rounding errors lower 7 of the 768 pairs of value and channel by one
    level, and more if the compiler fuses multiplications with additions.
    """
    return jnp.floor(jnp.clip(denormalize(images), 0, 255) + 1e-3) / 255


def sample_codes(statistics: StyleStatistics, noise: Float[Array, "b k"]) -> Float[Array, "b k"]:
    """Turn standard normal noise into codes with the mean and covariance of the statistics."""
    return jnp.einsum("bj,kj->bk", noise, statistics.factor, precision="highest") + statistics.mean


def mix_codes(alpha: float, sampled: Float[Array, "b k"], own: Float[Array, "b k"]) -> Float[Array, "b k"]:
    """Mix an image's own style code with a sampled one, which has the share `alpha`."""
    return alpha * sampled + (1 - alpha) * own
