"""L1 losses of masked image modelling with Earth-Style Injection.

The network reconstructs the clean image from the content-masked image and, for restyled samples, also from the features
that the segmentation head receives. Source: CrossEarth's training step; the paper calls the terms L_MIM and L_Δ.
"""

from __future__ import annotations

import einops
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from crossearth_jax.config import MimTaskConfig
from crossearth_jax.ops.resize import resize_bilinear


def reconstruction_loss(
    config: MimTaskConfig,
    images: Float[Array, "b h w 3"],
    from_masked: Float[Array, "b s s 3"],
    from_styled: Float[Array, "b s s 3"],
    styled: Bool[Array, " b"],
    inside: Bool[Array, "b h w"] | None = None,
) -> dict[str, Float[Array, ""]]:
    """Compute the reconstruction terms.

    All terms are sums of pixel differences divided by the number of pixels of the whole batch that are not padding. In
    the styled and consistency terms, samples that were not restyled contribute zero to the sum but count in the
    divisor. So the expected weight of a restyled sample does not depend on the batch size, as in the reference with one
    image per process. If all samples are restyled, the terms equal those of the reference for the batch.

    Args:
      config: weights of the terms.
      images: clean, normalised; resized bilinearly to the size of the reconstructions.
      from_masked: reconstruction from the content-masked images.
      from_styled: reconstruction from the restyled images; its values do not matter where `styled` is False.
      styled: which samples were restyled.
      inside: which pixels of the images are not padding; None: all.

    Returns:
      Weighted float32 terms `mim/masked` and `mim/styled` (each reconstruction against the image), and
      `mim/consistency` (the two reconstructions against each other, with gradients to both). The loss is their sum.
    """
    target = resize_bilinear(images.astype(jnp.float32), from_masked.shape[1:3])
    from_masked, from_styled = from_masked.astype(jnp.float32), from_styled.astype(jnp.float32)
    compared = compared_pixels(jnp.ones(images.shape[:3], bool) if inside is None else inside, target.shape[1])
    return {
        "mim/masked": config.masked_weight * _l1(from_masked, target, compared),
        "mim/styled": config.styled_weight * _l1(from_styled, target, compared, styled),
        "mim/consistency": config.consistency_weight * _l1(from_masked, from_styled, compared, styled),
    }


def compared_pixels(inside: Bool[Array, "b h w"], size: int) -> Bool[Array, "b {size} {size}"]:
    """Return which pixels of the reconstruction are compared: those whose resized target contains no padding."""
    return resize_bilinear(inside.astype(jnp.float32), (size, size), axes=(-2, -1)) > 0.999


def _l1(
    first: Float[Array, "b s s 3"],
    second: Float[Array, "b s s 3"],
    compared: Bool[Array, "b s s"],
    samples: Bool[Array, " b"] | None = None,
) -> Float[Array, ""]:
    """Compute the mean absolute difference over all compared pixels; samples with False in `samples` count as 0."""
    counted = compared if samples is None else compared & samples[:, None, None]
    differences = einops.reduce(jnp.abs(first - second), "b s t c -> b s t", "mean")
    return differences.sum(where=counted) / jnp.maximum(compared.sum(), 1)
