"""Class scores of every pixel from Mask2Former's queries ("semantic inference", arXiv 2112.01527)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from crossearth_jax.ops.resize import resize_bilinear


def pixel_scores(
    class_logits: Float[Array, "*b q k1"], mask_logits: Float[Array, "*b q h w"], size: Sequence[int]
) -> Float[Array, "*b H W k"]:
    """Sum class probability times mask probability over the queries.

    A score is in [0, q]. It is neither a probability nor a logit.

    Args:
      class_logits: K + 1 per query, "no object" last.
      mask_logits: of any size; they are resized bilinearly to `size` before the sigmoid.
      size: (height, width) of the result.
    """
    classes = jax.nn.softmax(class_logits)[..., :-1]
    masks = jax.nn.sigmoid(resize_bilinear(mask_logits, size, axes=(-2, -1)))
    return jnp.einsum("...qk,...qhw->...hwk", classes, masks)
