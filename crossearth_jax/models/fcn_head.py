"""Light heads that classify every pixel directly, without queries or matching; not part of the reference.

They train in a fraction of Mask2Former's time, so methods can be compared without a heavy head.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from crossearth_jax.config import ModelConfig
from crossearth_jax.models.layers import conv, group_norm
from crossearth_jax.models.segmentation_head import PixelHead
from crossearth_jax.ops.resize import scale_bilinear


class FcnHead(PixelHead):
    """The usual per-pixel head (Long et al., arXiv 1411.4038): two 3 x 3 and one 1 x 1 convolution."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        head, vit = config.head, config.vit
        assert head is not None
        self.enlargement = max(vit.pyramid)
        self.conv1 = conv(len(vit.feature_blocks) * vit.width, head.width, 3, dtype, rngs=rngs)
        self.norm1 = group_norm(head.width, head.groups, rngs=rngs)
        self.conv2 = conv(head.width, head.width, 3, dtype, rngs=rngs)
        self.norm2 = group_norm(head.width, head.groups, rngs=rngs)
        self.classifier = conv(head.width, config.classes, 1, dtype, axes=(), rngs=rngs)

    def __call__(self, levels: tuple[Float[Array, "b h w c"], ...]) -> Float[Array, "b H W k"]:
        """Predict float32 logits at the finest level of the pyramid (stride 4 for patches of 16 pixels).

        Args:
          levels: all on the patch grid. The first convolution runs on this grid, the second on the enlarged map.
        """
        x = nnx.relu(self.norm1(self.conv1(jnp.concatenate(levels, axis=-1))))
        x = nnx.relu(self.norm2(self.conv2(scale_bilinear(x, self.enlargement))))
        return self.classifier(x).astype(jnp.float32)


class LinearHead(PixelHead):
    """A linear classifier of single patches: what is linearly separable in the features of the backbone."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        inputs = len(config.vit.feature_blocks) * config.vit.width
        self.classifier = conv(inputs, config.classes, 1, dtype, axes=(), rngs=rngs)

    def __call__(self, levels: tuple[Float[Array, "b h w c"], ...]) -> Float[Array, "b h w k"]:
        """Predict float32 logits at the patch grid from the concatenated levels."""
        return self.classifier(jnp.concatenate(levels, axis=-1)).astype(jnp.float32)
