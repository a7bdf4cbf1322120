"""Reconstruction head of masked image modelling, and the pixel mask token that replaces hidden blocks.

CrossEarth's training code shares one atrous pyramid between the four feature maps. (The paper's figure shows one
dilation per map.) Its layer norm and MLP, which it never uses, are left out.
"""

from __future__ import annotations

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from crossearth_jax.config import MimConfig, ViTConfig
from crossearth_jax.models.layers import conv
from crossearth_jax.models.parameters import ZEROS, parameter
from crossearth_jax.models.torch_names import CONV, PIXELS, affine, rule
from crossearth_jax.ops.resize import scale_bilinear, sum_enlarged


class MimHead(nnx.Module):
    """Reconstruct an image from the patch features of the four feature blocks."""

    def __init__(self, config: MimConfig, backbone: ViTConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        self.config, self.pyramid_factors = config, backbone.pyramid
        width, inputs = config.width, backbone.width
        self.mask_token = parameter((config.token_size, config.token_size, 3), ZEROS)
        self.input_conv = conv(inputs, width, 1, dtype, rngs=rngs)
        self.dilated = nnx.List([conv(width, width, 3, dtype, dilation=d, rngs=rngs) for d in config.dilations])
        self.merge_conv = conv(len(config.dilations) * width, width, 1, dtype, rngs=rngs)
        self.refine = conv(len(backbone.pyramid) * width, width, 1, dtype, rngs=rngs)
        self.output_conv = conv(width, 3, 1, dtype, axes=(), rngs=rngs)

    def __call__(self, levels: tuple[Float[Array, "b h w c"], ...]) -> Float[Array, "b s s 3"]:
        """Reconstruct the normalised image with sides of `config.image_size`, in float32.

        Args:
          levels: all on the patch grid. Each is resized after its 1x1 projection: the two operations commute, and the
            projected maps have fewer channels.
        """
        projected = (scale_bilinear(self.input_conv(x), f) for x, f in zip(levels, self.pyramid_factors, strict=True))
        return self.assemble([self.pyramid(x) for x in projected])

    def pyramid(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        """Apply convolutions of several dilations to a map and merge their outputs."""
        return nnx.relu(self.merge_conv(jnp.concatenate([dilated(x) for dilated in self.dilated], axis=-1)))

    def assemble(self, maps: list[Float[Array, "b _ _ d"]]) -> Float[Array, "b s s 3"]:
        """Enlarge the maps, mix them by a 1x1 convolution and project to pixels.

        The reference concatenates the enlarged maps before it mixes them. Here each map is mixed at its own size, which
        gives the same sum from far fewer pixels. Then all are enlarged to the full width, and one product enlarges
        their heights and adds them, so that no other map of the full size is kept.
        """
        size = self.config.image_size
        kernels = rearrange(self.refine.kernel[...], "1 1 (n c) d -> n c d", n=len(maps)).astype(maps[0].dtype)
        mixed = (jnp.einsum("bhwc,cd->bhwd", x, kernel) for x, kernel in zip(maps, kernels, strict=True))
        total = sum_enlarged(list(mixed), (size, size))
        assert self.refine.bias is not None
        total = total + self.refine.bias[...].astype(total.dtype)
        # A product instead of the layer itself: its output is float32, so the gradient of the bias, a sum over all
        # pixels, is too.
        kernel, bias = self.output_conv.kernel[...][0, 0], self.output_conv.bias
        assert bias is not None
        pixels = jnp.einsum(
            "bhwc,cd->bhwd", nnx.relu(total), kernel.astype(total.dtype), preferred_element_type=jnp.float32
        )
        return pixels + bias[...]


TORCH_NAMES = (
    rule("mask_token", "mim/mask_token", PIXELS),
    *affine("task_head.aspp_head.conv_1x1", "mim/input_conv", CONV),
    *affine("task_head.aspp_head.Convs.{i}", "mim/dilated/{i}", CONV),
    *affine("task_head.aspp_head.conv_1x1_2", "mim/merge_conv", CONV),
    *affine("task_head.feature_refine_256.0", "mim/refine", CONV),
    *affine("task_head.final_conv", "mim/output_conv", CONV),
)
