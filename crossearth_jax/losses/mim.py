"""L1 losses of the reconstruction task (masked image modelling with Earth-Style Injection).

The network reconstructs the clean image twice: from the content-masked image, and, for restyled samples, from the
features that the segmentation used. Source: CrossEarth's training step, the terms it calls L_MIM and L_Δ.
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
) -> dict[str, Float[Array, ""]]:
    """Computes the reconstruction terms.

    A sample that was not restyled adds nothing to the two styled terms, and all terms are means over the whole
    batch. A styled sample then weighs the same at any batch size, as in the reference with one image per process;
    with the whole batch styled the terms are the reference's for that batch.

    Args:
      config: weights of the terms.
      images: clean, normalised; resized bilinearly to the size of the reconstructions.
      from_masked: reconstruction from the content-masked images.
      from_styled: reconstruction from the restyled images; arbitrary where `styled` is False.
      styled: which samples were restyled.

    Returns:
      Weighted float32 terms `mim/masked`, `mim/styled` (reconstruction against image) and `mim/consistency` (the
      two reconstructions against each other, with a gradient to both). The loss is their sum.
    """
    target = resize_bilinear(images.astype(jnp.float32), from_masked.shape[1:3])
    from_masked, from_styled = from_masked.astype(jnp.float32), from_styled.astype(jnp.float32)
    return {
        "mim/masked": config.masked_weight * _l1(from_masked, target).mean(),
        "mim/styled": config.styled_weight * jnp.where(styled, _l1(from_styled, target), 0).mean(),
        "mim/consistency": config.consistency_weight * jnp.where(styled, _l1(from_masked, from_styled), 0).mean(),
    }


def _l1(first: Float[Array, "b s s 3"], second: Float[Array, "b s s 3"]) -> Float[Array, " b"]:
    return einops.reduce(jnp.abs(first - second), "b s t c -> b", "mean")
