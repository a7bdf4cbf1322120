"""Vision transformer of DINOv2 (arXiv 2304.07193) and DINOv3 (arXiv 2508.10104): feature maps of chosen blocks.

`ViTConfig` says how the members of the family differ: registers, position embeddings, key bias and MLP.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from crossearth_jax.config import UserError, ViTConfig
from crossearth_jax.models.layers import conv, layer_norm, linear, stack
from crossearth_jax.models.parameters import ZEROS, Distribution, parameter
from crossearth_jax.models.torch_names import CONV, LINEAR, SAME, TABLE, TOKEN, affine, rule
from crossearth_jax.ops.attention import attention
from crossearth_jax.ops.normalization import standardize
from crossearth_jax.ops.resize import apply_matrices, cubic_kernel, interpolation_matrix
from crossearth_jax.ops.rotary import Rotation, rotate, rotation
from crossearth_jax.runtime import parallel

# Activations of a block that `remat="cheap"` keeps. With them the backward pass repeats no matrix product of the frozen
# weights: the gradients of attention need queries, keys and values, that of the activation function its input, those of
# the norms and of an adapter the tokens after each branch, that of Rein's scale what it multiplies.
KEPT = ("qkv", "attended", "hidden", "transformed", "delta")
KERNEL = Distribution("normal", 0.02)  # initial values of all kernels of the blocks, and of the positions
TOKEN_VALUES = Distribution("normal", 1e-6)  # of the class token and the registers


def position_table(
    table: Float[Array, "n c"], height: int, width: int, antialias: bool = False
) -> Float[Array, "h w c"]:
    """Fit a square grid of position embeddings to an image of (height, width) patches.

    A grid of another size is resized bicubically. DINOv2 uses no antialiasing and the scale factors (height + 0.1) /
    side and (width + 0.1) / side. The 0.1 protects the output size against rounding errors; it also shifts the sampling
    positions a little. DINOv2 with registers uses antialiasing and exact scale factors.
    """
    side = math.isqrt(len(table))
    grid = rearrange(table, "(h w) c -> h w c", h=side)
    if (height, width) == (side, side):
        return grid
    if antialias:
        return jax.image.resize(grid, (height, width, grid.shape[-1]), "cubic")
    rows, columns = (
        interpolation_matrix(side, n, scale=(n + 0.1) / side, kernel=cubic_kernel) for n in (height, width)
    )
    return apply_matrices(grid, rows, columns)


class KeysWithoutBias(nnx.Linear):
    """Projection to queries, keys and values in which the bias of the keys counts as zero and is not trained."""

    def __call__(self, inputs: Float[Array, "*b c"], out_sharding: Any = None) -> Float[Array, "*b d"]:
        """Return the projections of every token."""
        assert self.bias is not None
        bias = self.bias[...] * np.repeat(np.asarray([1, 0, 1], np.float32), self.out_features // 3)
        inputs, kernel = inputs.astype(self.dtype), self.kernel[...].astype(self.dtype)
        return jnp.matmul(inputs, kernel, out_sharding=out_sharding) + bias.astype(self.dtype)


class SelfAttention(nnx.Module):
    """Self-attention with one packed projection of queries, keys and values."""

    def __init__(self, config: ViTConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        self.heads = config.heads
        width, layer = config.width, nnx.Linear if config.key_bias else KeysWithoutBias
        self.qkv = linear(
            width, 3 * width, dtype, kernel=KERNEL, bias=ZEROS, axes=("embed", "heads"), layer=layer, rngs=rngs
        )
        self.proj = linear(width, width, dtype, kernel=KERNEL, bias=ZEROS, axes=("heads", "embed"), rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n c"], mask: Bool[Array, "b n n"] | None = None, angles: Rotation | None = None
    ) -> Float[Array, "b n c"]:
        """Attend from every token to every token, or only where `mask` is True; `angles` turn queries and keys."""
        qkv = checkpoint_name(self.qkv(x), "qkv")
        query, key, value = rearrange(qkv, "b n (s k d) -> s b n k d", s=3, k=self.heads)
        if angles is not None:
            query, key = rotate(query, angles), rotate(key, angles)
        return self.proj(rearrange(attention(query, key, value, mask), "b n k d -> b n (k d)"))


class GeluMlp(nnx.Module):
    """Feed-forward network with the exact (erf) GELU."""

    def __init__(self, config: ViTConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        width, hidden = config.width, config.mlp_width
        self.fc1 = linear(width, hidden, dtype, kernel=KERNEL, bias=ZEROS, axes=("embed", "mlp"), rngs=rngs)
        self.fc2 = linear(hidden, width, dtype, kernel=KERNEL, bias=ZEROS, axes=("mlp", "embed"), rngs=rngs)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Transform every token independently."""
        return self.fc2(jax.nn.gelu(checkpoint_name(self.fc1(x), "hidden"), approximate=False))


class SwigluMlp(nnx.Module):
    """Gated feed-forward network (SwiGLU); `mlp_width` is the width of the gated product."""

    def __init__(self, config: ViTConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        width, hidden = config.width, config.mlp_width
        self.w12 = linear(width, 2 * hidden, dtype, kernel=KERNEL, bias=ZEROS, axes=("embed", "mlp"), rngs=rngs)
        self.w3 = linear(hidden, width, dtype, kernel=KERNEL, bias=ZEROS, axes=("mlp", "embed"), rngs=rngs)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Transform every token independently."""
        gate, hidden = jnp.split(checkpoint_name(self.w12(x), "hidden"), 2, axis=-1)
        return self.w3(jax.nn.silu(gate) * hidden)


class Block(nnx.Module):
    """Pre-norm transformer block with learnt per-channel gains (LayerScale) on both residual branches."""

    def __init__(self, config: ViTConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        gain = Distribution("constant", config.layer_scale)
        self.norm1 = layer_norm(config.width, config.norm_epsilon, rngs=rngs)
        self.attention = SelfAttention(config, dtype, rngs=rngs)
        self.gain1 = parameter((config.width,), gain)
        self.norm2 = layer_norm(config.width, config.norm_epsilon, rngs=rngs)
        self.mlp = (SwigluMlp if config.swiglu else GeluMlp)(config, dtype, rngs=rngs)
        self.gain2 = parameter((config.width,), gain)

    def __call__(
        self, x: Float[Array, "b n c"], mask: Bool[Array, "b n n"] | None = None, angles: Rotation | None = None
    ) -> Float[Array, "b n c"]:
        """Transform the tokens, which stay in float32.

        Args:
          x: the tokens.
          mask: True where attention is allowed; None: everywhere.
          angles: of rotary position embeddings, if the backbone has them.
        """
        x = checkpoint_name(x + self.gain1[...] * self.attention(self.norm1(x), mask, angles), "attended")
        return checkpoint_name(x + self.gain2[...] * self.mlp(self.norm2(x)), "transformed")


class Adapter(nnx.Module):
    """Base class of what adapts the blocks of the backbone. A subclass overrides `adapt`, `refine` or both."""

    def per_block(self) -> Any:
        """Return arrays whose leading axis is the blocks. The part of a block is passed to the methods below."""
        raise NotImplementedError

    def adapt(self, block: Block, inputs: Any) -> Block:
        """Return the block to run. `block` may be changed."""
        return block

    def refine(self, x: Float[Array, "b n c"], inputs: Any, rows: int) -> Float[Array, "b n c"]:
        """Refine the tokens after a block.

        Args:
          x: class token and registers, whose results are not used, then the patches.
          inputs: the part of `per_block` that belongs to the block.
          rows: number of rows of patches.
        """
        return x


class Tokens(NamedTuple):
    """The float32 tokens between two blocks."""

    prefix: Float[Array, "b p c"]  # class token and registers
    patches: Float[Array, "b h w c"]


class VisionTransformer(nnx.Module):
    """Compute the patch features of `feature_blocks`, without a final norm."""

    def __init__(self, config: ViTConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        blocks = list(config.feature_blocks)
        if blocks != sorted(set(blocks)) or blocks[-1] != config.depth - 1:
            raise UserError(
                f"model.vit.feature_blocks are {config.feature_blocks}; they must be ascending and end with the "
                f"last block, {config.depth - 1} (later blocks would be computed without effect)"
            )
        self.config = config
        patch, patches = config.patch_size, (config.image_size // config.patch_size) ** 2
        axes = ("window", "window", None, "embed")
        self.patch_embed = conv(3, config.width, patch, dtype, stride=patch, axes=axes, rngs=rngs)
        self.class_token = parameter((config.width,), TOKEN_VALUES)
        registers, positions = (config.registers, config.width), (1 + patches, config.width)
        self.registers = parameter(registers, TOKEN_VALUES, (None, "embed")) if config.registers else None
        self.position = parameter(positions, KERNEL, (None, "embed")) if config.position != "rope" else None
        self.blocks = stack(lambda rngs: Block(config, dtype, rngs=rngs), config.depth, rngs=rngs)

    def embed(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b n c"]:
        """Turn normalised images into float32 tokens: class token, registers, patches.

        Position embeddings of a table are added to class token and patches.

        Raises:
          UserError: a side is not a multiple of the patch size.
        """
        patch = self.config.patch_size
        if images.shape[1] % patch or images.shape[2] % patch:
            raise UserError(f"the image is {images.shape[1]} x {images.shape[2]}; sides must be multiples of {patch}")
        if (statistics := self.config.pixel_statistics) is not None:
            assert not isinstance(statistics, str), "must be measured before the model is built"
            images = standardize(images, *statistics)
        patches = self.patch_embed(images).astype(jnp.float32)
        others = self.class_token[...]
        if self.position is not None:
            antialias = self.config.position == "antialiased_table"
            patches = patches + position_table(self.position[1:], *patches.shape[1:3], antialias)
            others = others + self.position[0]
        others = others[None]
        if self.registers is not None:
            others = jnp.concatenate([others, self.registers[...]])
        # Not `len(images)`: the number of images is symbolic when the network is exported.
        others = jnp.broadcast_to(others, (images.shape[0], *others.shape))
        return jnp.concatenate([others, rearrange(patches, "b h w c -> b (h w) c")], axis=1)

    def __call__(
        self, images: Float[Array, "b h w 3"], adapter: Adapter | None = None
    ) -> tuple[Float[Array, "b n m c"], ...]:
        """Return one map of patch features per feature block, on the patch grid and in float32.

        Args:
          images: normalised; both sides are multiples of the patch size.
          adapter: changes the layers of every block, or refines the patch tokens (not class token and registers)
            after it.
        """
        return tuple(tokens.patches for tokens in self.tokens_after(self.config.feature_blocks, images, adapter))

    def tokens_after(
        self, blocks: Sequence[int], images: Float[Array, "b h w 3"], adapter: Adapter | None = None
    ) -> list[Tokens]:
        """Return the tokens after each of the given blocks, which must be ascending. Later blocks are not run."""
        tokens = self.embed(images)
        rows = images.shape[1] // self.config.patch_size
        collected, others = self._scan(tokens, blocks, adapter, rows), 1 + self.config.registers
        return [Tokens(x[:, :others], rearrange(x[:, others:], "b (h w) c -> b h w c", h=rows)) for x in collected]

    def _scan(
        self, tokens: Float[Array, "b n c"], blocks: Sequence[int], adapter: Adapter | None, rows: int
    ) -> Float[Array, "f b n c"]:
        """Run the blocks up to the last of `blocks` and collect the tokens after each of them."""
        layer = self.layer(adapter, rows)

        def step(carry: tuple[jax.Array, jax.Array], inputs: Any) -> tuple[tuple[jax.Array, jax.Array], None]:
            x, collected = carry
            slot, block, adapter_inputs = inputs
            x = layer(x, block, adapter_inputs)
            return (x, jax.lax.dynamic_update_index_in_dim(collected, x, slot, 0)), None

        # Every block writes into the slot of the next wanted block, which overwrites it in the end. So one scan with
        # one compiled block is enough, and only the wanted tokens are kept.
        slots = np.searchsorted(blocks, np.arange(blocks[-1] + 1))
        collected = jnp.zeros((len(blocks), *tokens.shape))
        inputs = (slots, *self.stacked(adapter, 0, blocks[-1] + 1))
        (_, collected), _ = jax.lax.scan(step, (tokens, collected), inputs)
        return collected

    def stacked(self, adapter: Adapter | None, first: int, end: int) -> tuple[Block, Any]:
        """Return the blocks from `first` to before `end`, stacked, and the adapter's inputs of these blocks."""
        stacks = (self.blocks, adapter.per_block() if adapter else None)
        # A slice is a copy. The usual call needs none.
        return stacks if (first, end) == (0, self.config.depth) else jax.tree.map(lambda x: x[first:end], stacks)

    def layer(self, adapter: Adapter | None, rows: int, queries: int = 0) -> Callable[..., Float[Array, "b n c"]]:
        """Return a function that runs one block and its adapter, with the configured rematerialisation.

        Args:
          adapter: the adapter, which refines neither class token, registers nor queries.
          rows: number of rows of patches.
          queries: number of additional tokens after the patches.

        Returns:
          A function of the tokens, the block, the adapter's inputs of the block, and optionally an attention mask.
        """

        config, others = self.config, 1 + self.config.registers

        def layer(x: jax.Array, block: Block, inputs: Any, mask: jax.Array | None = None) -> jax.Array:
            angles = None
            if config.position == "rope":
                columns = (x.shape[1] - others - queries) // rows
                angles = rotation(rows, columns, config.width // config.heads, others, queries)
            if adapter is not None:
                block = adapter.adapt(block, inputs)
            x = parallel.split_by_batch(block(parallel.split_by_batch(x), mask, angles))
            if adapter is None:
                return x
            image = x[:, : x.shape[1] - queries]
            # Cheaper than slicing the other tokens off and concatenating them again.
            is_patch = jnp.arange(image.shape[1])[:, None] >= others
            refined = jnp.where(is_patch, adapter.refine(image, inputs, rows), image)
            return jnp.concatenate([refined, x[:, image.shape[1] :]], axis=1) if queries else refined

        if self.config.remat == "none":
            return layer
        kept = KEPT if self.config.remat == "cheap" else ()
        policy = jax.checkpoint_policies.save_only_these_names(*kept)
        return jax.checkpoint(layer, prevent_cse=False, policy=policy)


_BLOCK, _OURS = "backbone.blocks.{i}", "backbone/blocks"
TORCH_NAMES = (
    rule("backbone.cls_token", "backbone/class_token", TOKEN),
    rule("backbone.pos_embed", "backbone/position", TABLE),
    rule("backbone.register_tokens", "backbone/registers", TABLE),
    *affine("backbone.patch_embed.proj", "backbone/patch_embed", CONV),
    *affine(f"{_BLOCK}.norm1", f"{_OURS}/norm1"),
    *affine(f"{_BLOCK}.attn.qkv", f"{_OURS}/attention/qkv", LINEAR),
    *affine(f"{_BLOCK}.attn.proj", f"{_OURS}/attention/proj", LINEAR),
    rule(f"{_BLOCK}.ls1.gamma", f"{_OURS}/gain1", SAME),
    *affine(f"{_BLOCK}.norm2", f"{_OURS}/norm2"),
    *affine(f"{_BLOCK}.mlp.fc1", f"{_OURS}/mlp/fc1", LINEAR),
    *affine(f"{_BLOCK}.mlp.fc2", f"{_OURS}/mlp/fc2", LINEAR),
    *affine(f"{_BLOCK}.mlp.w12", f"{_OURS}/mlp/w12", LINEAR),
    *affine(f"{_BLOCK}.mlp.w3", f"{_OURS}/mlp/w3", LINEAR),
    rule(f"{_BLOCK}.ls2.gamma", f"{_OURS}/gain2", SAME),
)
