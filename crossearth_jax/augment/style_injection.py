"""Earth-Style Injection: parts of some training images are redrawn in a style sampled from Earth imagery.

An image's own style code is mixed with a code drawn from a Gaussian, the image is redrawn in the mixed style, and
random blocks take the redrawn pixels. The network that reads and draws styles is passed in (`StyleBackend`).

The network blurs what it draws. `StyleConfig.detail` says how much of the drawn image a restyled pixel takes
(`redraw`).

Only the share of the batch that is restyled goes through that network: every data shard restyles the same number
of its images, `floor(p s)` or one more by a coin that all shards share. So the expectation is exactly the
probability p per image, no image changes device, and no shard waits for another.
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
Stylize = Callable[[Float32[Array, "b h w 3"], Float[Array, "b k"]], Float32[Array, "b h w 3"]]  # of images, codes

DRAW_SCALES = {"low": 0.5, "scaled": 2.0}  # of `StyleConfig.detail`, where `StyleConfig.draw_scale` is None


@runtime_checkable
class Injection(Protocol):
    """Earth-Style Injection as a training step calls it."""

    def __call__(
        self,
        params: Params,
        key: Key[Array, ""],
        images: Float32[Array, "b h w 3"],
        inside: Bool[Array, "b h w"] | None = None,
        /,
    ) -> tuple[Float32[Array, "b h w 3"], Bool[Array, " b"]]:
        """Returns the images, some of them restyled, and which those are.

        Args:
          params: of the style network (`style/…`), beside others.
          key: of this step.
          images: normalised.
          inside: the rectangle of pixels of each image that are not padding; None if there is none.
        """
        ...


@runtime_checkable
class StyleBackend(Protocol):
    """A style network without its parameters; images are in [0, 1]."""

    def encode(self, params: Params, images: Float[Array, "b h w 3"]) -> Float[Array, "b k"]:
        """Reads the style codes of images."""
        ...

    def stylize(
        self, params: Params, images: Float[Array, "b h w 3"], codes: Float[Array, "b k"]
    ) -> Float[Array, "b h w 3"]:
        """Redraws images in the styles of the codes."""
        ...


class StyleStatistics(NamedTuple):
    """The distribution of the codes of Earth imagery: covariance = factor @ factor.T."""

    mean: Float[np.ndarray, " k"]
    factor: Float[np.ndarray, "k k"]


class StyleDraws(NamedTuple):
    """The random choices for a batch: standard normal codes, and the pixels that keep the original."""

    noise: Float[Array, "*b k"]
    kept: Bool[Array, "*b h w"]


def style_injection(
    config: StyleConfig, backend: StyleBackend, statistics: StyleStatistics, shards: int = 1
) -> Injection:
    """Builds the injection. No gradient flows into the style network.

    Padding has no style: for the network it is filled with the mirrored image, and then left as it is.
    `config.literal` restyles it, as the reference does.

    Args:
      config: probability, mixing share, mask ratio, block size; `literal` chooses the reference's behaviour.
      backend: the style network.
      statistics: of that network's codes.
      shards: number of equal parts of the batch that choose their images on their own; at least the number of
        pieces the batch is sharded into, so that no image changes device.

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
    """Restyles each image with the configured probability and normalises the result again.

    Raises:
      UserError: the batch does not divide into the shards.
    """
    if len(images) % shards:
        raise UserError(f"a batch of {len(images)} images does not divide into {shards} data shards")
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
    """Restyles the first `count` images in the given order with the first draws; the others stay as they are."""
    if count == 0:
        return images, jnp.zeros(len(images), bool)
    chosen, draws = images[order[:count]], jax.tree.map(lambda x: x[:count], draws)
    if inside is not None:
        chosen = jax.vmap(mirror_into_padding)(chosen, inside[order[:count]])
    restyled = normalize(255 * restyle(config, backend, params, statistics, draws, chosen))
    rank = jnp.argsort(order)
    styled = rank < count
    # Gathered, not scattered: image i takes the restyled image rank[i] where there is one.
    spread = restyled[jnp.minimum(rank, count - 1)]
    changed = styled[:, None, None] if inside is None else styled[:, None, None] & inside
    return jnp.where(changed[..., None], spread, images), styled


def mirror_into_padding(image: Float32[Array, "h w 3"], inside: Bool[Array, "h w"]) -> Float32[Array, "h w 3"]:
    """Continues an image into its padding by reflections at its borders, as often as needed.

    Args:
      image: with padding.
      inside: the rectangle that is not padding.
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
    """Does what the reference's code does: one coin for the whole batch, restyled images in [0, 1].

    The backbone then sees styled images on another scale than clean ones, almost certainly by mistake, and padding
    is restyled like the image.
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
    """Draws a style and a block mask for every image of a batch (one or more leading axes)."""
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
    """Restyles normalised images where the mask does not keep them; the result is in [0, 1].

    What is kept is the 8-bit image, as in the reference.
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
    """Gives images in [0, 1] the styles of the codes and keeps as much of their detail as `config.detail` says.

    "network" is the drawn image itself. "scaled" draws the image enlarged by `config.draw_scale` and averages it back,
    so that the network blurs over fewer of the original pixels. "low" keeps every detail: the change (drawn minus
    original) is averaged over cells of `config.cell_size` pixels, interpolated bilinearly between their centres and
    added to the original; the sum is clipped to [0, 1]. Since detail is then not needed, the network draws a smaller
    image, which costs less.
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
    """Turns normalised images into multiples of 1/255 in [0, 1], truncating.

    The small addend brings back the whole number an augmented pixel was, whatever the compiler fuses; without it
    (as in the reference) rounding errors cost 7 of the 768 values of an 8-bit colour one level.
    """
    return jnp.floor(jnp.clip(denormalize(images), 0, 255) + 1e-3) / 255


def sample_codes(statistics: StyleStatistics, noise: Float[Array, "b k"]) -> Float[Array, "b k"]:
    """Turns standard normal noise into codes with the mean and covariance of the statistics."""
    return jnp.einsum("bj,kj->bk", noise, statistics.factor, precision="highest") + statistics.mean


def mix_codes(alpha: float, sampled: Float[Array, "b k"], own: Float[Array, "b k"]) -> Float[Array, "b k"]:
    """Moves an image's own style by the share `alpha` towards the sampled one."""
    return alpha * sampled + (1 - alpha) * own
