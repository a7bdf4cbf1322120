"""EoMT: queries join the patches in the last blocks of the backbone, which takes the place of a decoder.

Kerssies et al., "Your ViT is Secretly an Image Segmentation Model" (CVPR 2025, arXiv 2503.19108).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from crossearth_jax.config import ModelConfig, UserError
from crossearth_jax.models.layers import conv, layer_norm, linear
from crossearth_jax.models.mask_decoder import mask_logits
from crossearth_jax.models.parameters import Distribution, parameter
from crossearth_jax.models.segmentation_head import Encoder, Features, MaskHead, Predictions, Training
from crossearth_jax.models.vit import Block
from crossearth_jax.ops.resize import resize_bilinear
from crossearth_jax.runtime import parallel


class UpscaleBlock(nnx.Module):
    """Double the size of a feature map: transposed 2 x 2 convolution, GELU, depthwise 3 x 3 convolution, layer norm."""

    def __init__(self, width: int, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        initial = Distribution("uniform", (4 * width) ** -0.5)  # PyTorch's for this transposed convolution
        self.dtype = dtype
        self.kernel = parameter((2, 2, width, width), initial, ("window", "window", "embed", None))
        self.bias = parameter((width,), initial)
        self.depthwise = conv(width, width, 3, dtype, groups=width, use_bias=False, axes=(), rngs=rngs)
        self.norm = layer_norm(width, 1e-6, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W c"]:
        """Return the map at twice the size, in float32."""
        x, kernel, bias = (array.astype(self.dtype) for array in (x, self.kernel[...], self.bias[...]))
        # The windows do not overlap, so the transposed convolution is one matrix product.
        x = rearrange(jnp.einsum("bhwc,ijcd->bhiwjd", x, kernel), "b h i w j d -> b (h i) (w j) d") + bias
        return self.norm(self.depthwise(jax.nn.gelu(x, approximate=False)))


class EomtHead(MaskHead):
    """Run the last blocks of the backbone on patches and learnt queries, then predict a class and a mask per query.

    In training the queries also predict before each of these blocks. Attention of a query to the patches is restricted
    to its predicted mask with the probability of `mask_probabilities`, which falls to 0 (mask annealing). So inference
    needs neither these masks nor the earlier predictions.
    """

    from_backbone: ClassVar[Mapping[str, str]] = {
        "norm/scale": "backbone.norm.weight",
        "norm/bias": "backbone.norm.bias",
    }

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        head, vit = config.head, config.vit
        assert head is not None
        if head.last_blocks >= vit.depth:
            raise UserError(
                f"model.head.last_blocks is {head.last_blocks}, expected less than model.vit.depth = {vit.depth}"
            )
        width, axes = vit.width, ("embed", None)
        self.own_blocks, self.annealing_power, self.dtype = head.last_blocks, head.annealing_power, dtype
        self.remat = vit.remat != "none"
        self.queries = parameter((head.queries, width), Distribution("normal", 1.0), ("tokens", "embed"))
        self.norm = layer_norm(width, vit.norm_epsilon, rngs=rngs)
        self.class_head = linear(width, config.classes + 1, dtype, axes=axes, rngs=rngs)
        self.mask_head = nnx.List([linear(width, width, dtype, axes=axes, rngs=rngs) for _ in range(3)])
        # Masks of stride 4 for patches of 16 pixels, as in the authors' code.
        enlargements = max(1, int(math.log2(vit.patch_size)) - 2)
        self.upscale = nnx.List([UpscaleBlock(width, dtype, rngs=rngs) for _ in range(enlargements)])

    @classmethod
    def query_count(cls, config: ModelConfig) -> int:
        """Return the number of learnt queries."""
        assert config.head is not None
        return config.head.queries

    def predict(self, features: Features, encoder: Encoder, training: Training | None) -> Predictions:
        """Compute class and mask logits before each of the last blocks and after them; outside of training only after.

        Args:
          features: with the tokens before the last blocks.
          encoder: the backbone and its adapter.
          training: progress and key of a training step.
        """
        if training is None:
            return Predictions(*(x[None] for x in self.final(features, encoder)))
        tokens, grid, layer, blocks = self._prepared(features, encoder)
        predict = jax.checkpoint(self.logits, static_argnums=1) if self.remat else self.logits

        def step(x: jax.Array, inputs: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            probability, key, block = inputs
            classes, masks = predict(x, grid)
            allowed = self.attention_mask(masks, grid, x.shape[1], probability, key)
            return layer(x, *block, allowed), (classes, masks)

        probabilities = mask_probabilities(training.progress, self.own_blocks, self.annealing_power)
        keys = jax.random.split(training.key, self.own_blocks)
        tokens, earlier = jax.lax.scan(step, tokens, (probabilities, keys, blocks))
        last = predict(tokens, grid)
        return Predictions(*(jnp.concatenate([a, b[None]]) for a, b in zip(earlier, last, strict=True)))

    def final(self, features: Features, encoder: Encoder) -> tuple[Float[Array, "b q k1"], Float[Array, "b q h w"]]:
        """Compute the class and mask logits after the last block, without attention masks."""
        tokens, grid, layer, blocks = self._prepared(features, encoder)
        tokens, _ = jax.lax.scan(lambda x, block: (layer(x, *block), None), tokens, blocks)
        return self.logits(tokens, grid)

    def _prepared(
        self, features: Features, encoder: Encoder
    ) -> tuple[Float[Array, "b n c"], tuple[int, int], Callable[..., jax.Array], tuple[Block, Any]]:
        """Return the tokens with the queries after the patches, the patch grid, and how and which blocks are run."""
        assert features.tokens is not None
        prefix, patches = features.tokens
        rows, columns = patches.shape[1:3]
        # Not `len(patches)`: the number of images is symbolic when the network is exported.
        queries = jnp.broadcast_to(self.queries[...], (patches.shape[0], *self.queries.shape))
        tokens = jnp.concatenate([prefix, rearrange(patches, "b h w c -> b (h w) c"), queries], axis=1)
        backbone, adapter = encoder
        depth = backbone.config.depth
        blocks = backbone.stacked(adapter, depth - self.own_blocks, depth)
        return tokens, (rows, columns), backbone.layer(adapter, rows, self.queries.shape[0]), blocks

    def logits(
        self, tokens: Float[Array, "b n c"], grid: tuple[int, int]
    ) -> tuple[Float[Array, "b q k1"], Float[Array, "b q h w"]]:
        """Compute the class and mask logits of the queries among the tokens between two blocks."""
        count = self.queries.shape[0]
        queries, patches = self.norm(tokens[:, -count:]), self.norm(tokens[:, -count - math.prod(grid) : -count])
        first, second, third = self.mask_head
        embeddings = third(jax.nn.gelu(second(jax.nn.gelu(first(queries), approximate=False)), approximate=False))
        pixels = rearrange(patches, "b (h w) c -> b h w c", h=grid[0])
        for block in self.upscale:
            pixels = block(pixels)
        return self.class_head(queries).astype(jnp.float32), mask_logits(embeddings, pixels.astype(self.dtype))

    def attention_mask(
        self,
        masks: Float[Array, "b q h w"],
        grid: tuple[int, int],
        tokens: int,
        probability: Float[Array, ""],
        key: PRNGKeyArray,
    ) -> Bool[Array, "b n n"]:
        """Return where the tokens may attend: queries to the patches of their mask, all others everywhere. No gradient.

        Args:
          masks: mask logits of the queries.
          grid: rows and columns of patches.
          tokens: number n of tokens, of which the last are the patches and the queries.
          probability: that a query is restricted to its mask.
          key: of the random choice of these queries.
        """
        inside = rearrange(resize_bilinear(masks, grid, axes=(-2, -1)) > 0, "b q h w -> b q (h w)")
        free = parallel.split_by_batch(jax.random.uniform(key, inside.shape[:2]) >= probability)
        _, queries, patches = inside.shape
        others = [(0, 0), (tokens - queries, 0), (tokens - patches - queries, queries)]
        return jnp.pad(inside | free[..., None], others, constant_values=True)


def mask_probabilities(progress: Float[Array, ""], blocks: int, power: float) -> Float[Array, " l"]:
    """Return for each of the last n blocks the probability that a query is restricted to its mask.

    The training is divided into n + 2 equal parts. For the first block the probability is 1 in the first part, falls to
    0 in the second part as (1 - t) ** power, where t is the share of the part that is done, and stays 0. For every
    further block the fall is one part later. So all are 0 in the last part.
    """
    t = progress * (blocks + 2) - jnp.arange(1, blocks + 1)
    return (1 - jnp.clip(t, 0, 1)) ** power
