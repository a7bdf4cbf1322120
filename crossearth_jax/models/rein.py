"""Rein adapters with low-rank tokens (LoRAReins): the trainable parameters inside the frozen backbone.

Wei et al., "Stronger, Fewer, & Superior" (arXiv 2312.04265), in the variant that CrossEarth uses.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange, reduce
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from crossearth_jax.config import ReinsConfig
from crossearth_jax.models.layers import linear
from crossearth_jax.models.parameters import Distribution, parameter
from crossearth_jax.models.torch_names import LINEAR, SAME, affine, rule
from crossearth_jax.models.vit import Adapter


class ReinTokens(NamedTuple):
    """Keys and values that the features of one block attend to; with a leading axis, those of all blocks."""

    keys: Float[Array, "*l t c"]
    values: Float[Array, "*l t c"]


class Rein(Adapter):
    """Refine patch features after each block by attention to a few learnt tokens per block.

    The queries of the mask decoder are computed from the tokens of all blocks, unless `query_width` is None. There are
    no activation functions.
    """

    def __init__(
        self, config: ReinsConfig, depth: int, width: int, query_width: int | None, dtype: jnp.dtype, *, rngs: nnx.Rngs
    ):
        self.dtype = dtype
        # The bound that visual prompt tuning uses, for patches of 16 x 16 pixels, whatever the backbone's patch size.
        tokens = Distribution("uniform", math.sqrt(6 / (3 * 16**2 + math.sqrt(width * config.rank))))
        self.tokens_a = parameter((depth, config.tokens, config.rank), tokens, (None, "tokens", "rank"))
        self.tokens_b = parameter((depth, config.rank, width), tokens, (None, "rank", "embed"))
        # Products that involve only the tokens run once per step, so float32 costs little. The maximum over blocks in
        # `queries` would have ties in bfloat16.
        float32, axes = jnp.dtype(jnp.float32), ("embed", None)
        self.token_to_feature = linear(width, width, float32, axes=axes, rngs=rngs)
        self.delta = linear(width, width, dtype, axes=axes, rngs=rngs)
        if query_width is not None:
            self.transform = linear(width, query_width, float32, axes=axes, rngs=rngs)
            self.merge = linear(3 * query_width, query_width, float32, axes=axes, rngs=rngs)
        self.scale = parameter((), Distribution("constant", config.scale))

    def tokens(self) -> Float[Array, "l t c"]:
        """Return the tokens of all blocks."""
        return jnp.einsum("ltr,lrc->ltc", self.tokens_a[...], self.tokens_b[...])

    def per_block(self) -> ReinTokens:
        """Return keys and values of all blocks, for a scan over blocks.

        The value of the first token is zero: it receives attention but adds nothing. The reference has the same
        effect, since it drops the first column after the softmax.
        """
        tokens = self.tokens()
        values = self.token_to_feature(tokens)
        return ReinTokens(tokens, values.at[:, 0].set(0))

    def refine(self, x: Float[Array, "b n c"], inputs: ReinTokens, rows: int) -> Float[Array, "b n c"]:
        """Refine float32 features by the tokens of one block."""
        features, keys, values = (array.astype(self.dtype) for array in (x, *inputs))
        similarity = jnp.einsum("bnc,tc->bnt", features, keys, preferred_element_type=jnp.float32)
        shares = jax.nn.softmax(similarity * x.shape[-1] ** -0.5)
        update = jnp.einsum("bnt,tc->bnc", shares.astype(self.dtype), values)
        return x + self.scale[...] * checkpoint_name(self.delta(update + x), "delta")

    def queries(self) -> Float[Array, "t d"]:
        """Return the mask decoder's queries, one per token.

        A linear layer merges three summaries of the transformed tokens: maximum and mean over the blocks, and the value
        of the last block.
        """
        y = self.transform(self.tokens())
        # The reference interleaves the three summaries along the channels.
        summaries = [reduce(y, "l t d -> t d", "max"), reduce(y, "l t d -> t d", "mean"), y[-1]]
        return self.merge(rearrange(summaries, "s t d -> t (d s)"))


TORCH_NAMES = (
    rule("backbone.reins.learnable_tokens_a", "reins/tokens_a", SAME),
    rule("backbone.reins.learnable_tokens_b", "reins/tokens_b", SAME),
    rule("backbone.reins.scale", "reins/scale", SAME),
    *affine("backbone.reins.mlp_token2feat", "reins/token_to_feature", LINEAR),
    *affine("backbone.reins.mlp_delta_f", "reins/delta", LINEAR),
    *affine("backbone.reins.transform", "reins/transform", LINEAR),
    *affine("backbone.reins.merge", "reins/merge", LINEAR),
)
