"""Sampling of multi-scale deformable attention (Zhu et al. 2020, arXiv 2010.04159), in three formulations."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from jaxtyping import Array, Float, Int

from crossearth_jax.ops.backend import platform

QUERIES_AT_ONCE = 1792  # their intermediate arrays for a map of 128 x 128 pixels fit into the VMEM of a TPU core


def deformable_attention(
    values: Float[Array, "b n k d"],
    sizes: Sequence[Sequence[int]],
    locations: Float[Array, "b q k l p 2"],
    weights: Float[Array, "b q k l p"],
) -> Float[Array, "b q k d"]:
    """Average values that are sampled bilinearly at p locations per query, head and level; zero outside the maps.

    Args:
      values: the maps of the levels, row-major and concatenated in level order; k heads of d channels.
      sizes: (height, width) of each of the l levels.
      locations: (x, y) relative to the map, from 0 to 1 between its borders, in float32.
      weights: of the p points of the l levels, usually a softmax over levels and points together.
    """
    formulations = {"tpu": sample_by_products, "onnx": sample_at_once}
    return formulations.get(platform(), sample_by_gather)(values, sizes, locations, weights)


def sample_by_gather(
    values: Float[Array, "b n k d"],
    sizes: Sequence[Sequence[int]],
    locations: Float[Array, "b q k l p 2"],
    weights: Float[Array, "b q k l p"],
) -> Float[Array, "b q k d"]:
    """Compute `deformable_attention` by gathering four pixels per sample, one pair of level and point after another.

    The backward pass gathers the pixels again, which is cheap, instead of storing them: for 3 levels and 4 points they
    need 48 times the memory of the output. Without the scan, XLA fuses the scatters of the backward pass into code that
    is several times slower on CPU.
    """

    @jax.checkpoint
    def sample(level: jax.Array, location: jax.Array, weight: jax.Array) -> jax.Array:
        total = jnp.zeros(())
        for index, share in _neighbours(level, location[0], location[1], weight):
            total += share[..., None] * jnp.take_along_axis(values, index[..., None], axis=1)
        return total

    points = locations.shape[-2]
    slots = (
        repeat(jnp.asarray(_levels(sizes)), "l x -> (l p) x", p=points),
        rearrange(locations, "b q k l p xy -> (l p) xy b q k"),
        rearrange(weights.astype(jnp.float32), "b q k l p -> (l p) b q k"),
    )
    start = jnp.zeros((*locations.shape[:3], values.shape[-1]), jnp.float32)
    total, _ = jax.lax.scan(lambda total, slot: (total + sample(*slot), None), start, slots)
    return total.astype(values.dtype)


def sample_at_once(
    values: Float[Array, "b n k d"],
    sizes: Sequence[Sequence[int]],
    locations: Float[Array, "b q k l p 2"],
    weights: Float[Array, "b q k l p"],
) -> Float[Array, "b q k d"]:
    """Compute `deformable_attention` by gathering the same one of four pixels for all samples at once.

    This needs memory for l * p times the output. In an ONNX graph, a loop over levels and points would become as many
    copies of its operations.
    """
    levels = jnp.asarray(_levels(sizes)).T[..., None]  # broadcasts with (…, l, p)
    total = jnp.zeros(())
    for index, share in _neighbours(levels, locations[..., 0], locations[..., 1], weights.astype(jnp.float32)):
        places = rearrange(index, "b q k l p -> b (q l p) k 1")
        pixels = jnp.take_along_axis(values, places, axis=1)
        pixels = rearrange(pixels, "b (q s) k d -> b q s k d", q=locations.shape[1])
        total += (rearrange(share, "b q k l p -> b q (l p) k 1") * pixels).sum(axis=2)
    return total.astype(values.dtype)


def _levels(sizes: Sequence[Sequence[int]]) -> Int[np.ndarray, "l 3"]:
    """Return height, width and position of the first token of every level."""
    extents = np.array(sizes, np.int32)
    areas = extents.prod(axis=1)
    return np.concatenate([extents, (np.cumsum(areas) - areas)[:, None]], axis=1)


def _neighbours(
    level: Int[Array, "*l"], x: Float[Array, "*s"], y: Float[Array, "*s"], weight: Float[Array, "*s"]
) -> Iterator[tuple[Int[Array, "*s"], Float[Array, "*s"]]]:
    """Yield the token and the weight of each of the four pixels around locations (x, y); weight 0 outside the map.

    The first axis of `level` has height, width and first token; the others broadcast with those of the locations.
    """
    height, width, start = level
    column, row = x * width - 0.5, y * height - 0.5
    left, top = jnp.floor(column), jnp.floor(row)
    for x, y in itertools.product((left, left + 1), (top, top + 1)):
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        share = (1 - jnp.abs(column - x)) * (1 - jnp.abs(row - y)) * weight
        # Clipped before the conversion: a very distant location would overflow the integer.
        x, y = (jnp.clip(i, 0, n - 1).astype(int) for i, n in ((x, width), (y, height)))
        yield start + y * width + x, jnp.where(inside, share, 0)


def sample_by_products(
    values: Float[Array, "b n k d"],
    sizes: Sequence[Sequence[int]],
    locations: Float[Array, "b q k l p 2"],
    weights: Float[Array, "b q k l p"],
) -> Float[Array, "b q k d"]:
    """Compute `deformable_attention` by matrix products with the weights of all rows and columns, mostly zeros.

    A TPU multiplies the whole map faster than it gathers a few of its pixels, and the backward pass needs no scatter.
    The matrix unit sums over the columns first. The intermediate result, one value per sample, row and channel, stays
    out of main memory because only one head and `QUERIES_AT_ONCE` queries are computed at a time. (One product with
    combined weights of rows and columns would be slower: computing these weights takes several times longer than using
    them.)
    """
    # At the default precision a TPU would round float32 weights to bfloat16.
    precision = jax.lax.Precision.HIGHEST if values.dtype == jnp.float32 else None
    ends = np.cumsum([height * width for height, width in sizes])[:-1]

    def head(inputs: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        values, *samples = inputs
        levels = jnp.split(values, ends, axis=1)
        maps = [rearrange(x, "b (h w) d -> b h w d", h=size[0]) for x, size in zip(levels, sizes, strict=True)]

        @jax.checkpoint
        def query(sample: list[jax.Array]) -> jax.Array:
            location, weight = sample
            total = jnp.zeros((), jnp.float32)
            for level, x in enumerate(maps):
                columns = _hat(location[:, level, :, 0], x.shape[2]) * weight[:, level, :, None]
                rows = _hat(location[:, level, :, 1], x.shape[1])
                summed = jnp.einsum("bpw,bhwd->bpdh", columns.astype(x.dtype), x, precision=precision)
                total += jnp.einsum(
                    "bpdh,bph->bd", summed, rows.astype(x.dtype), precision=precision,
                    preferred_element_type=jnp.float32,
                )  # fmt: skip
            return total

        return jax.lax.map(query, samples, batch_size=QUERIES_AT_ONCE)

    total = jax.lax.map(
        head,
        (
            rearrange(values, "b n k d -> k b n d"),
            rearrange(locations, "b q k l p xy -> k q b l p xy"),
            rearrange(weights, "b q k l p -> k q b l p"),
        ),
    )
    return rearrange(total, "k q b d -> b q k d").astype(values.dtype)


def _hat(positions: Float[Array, "*b"], size: int) -> Float[Array, "*b n"]:
    """Return the linear interpolation weight of each of `size` pixels for relative positions along one axis."""
    return jnp.maximum(0, 1 - jnp.abs(positions[..., None] * size - 0.5 - jnp.arange(size)))
