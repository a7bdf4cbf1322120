"""Layers that the networks share: the reference's normalisation and attention.

`dtype` is the type in which a layer multiplies: `linear` and `conv` cast their input to it and return it. What is
added up over many layers (the tokens of the backbone and of both decoders) stays in float32, and so do the norms: a
small addition, such as Rein's at its initial scale, would be rounded away in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float

from crossearth_jax.ops.attention import attention

# What a fresh module holds does not matter: `initial_values` draws parameters by their names.
_ZEROS = nnx.initializers.zeros_init()


def linear(inputs: int, outputs: int, dtype: jnp.dtype, *, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer."""
    return nnx.Linear(inputs, outputs, kernel_init=_ZEROS, dtype=dtype, rngs=rngs)


def conv(
    inputs: int,
    outputs: int,
    kernel: int,
    dtype: jnp.dtype,
    *,
    stride: int = 1,
    dilation: int = 1,
    use_bias: bool = True,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A convolution: padded to keep the size, or without padding where it has a stride."""
    return nnx.Conv(
        inputs,
        outputs,
        (kernel, kernel),
        strides=stride,
        padding="SAME" if stride == 1 else "VALID",
        kernel_dilation=dilation,
        use_bias=use_bias,
        kernel_init=_ZEROS,
        dtype=dtype,
        rngs=rngs,
    )


def layer_norm(width: int, epsilon: float, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer norm in float32; the variance is the mean of squared deviations, as PyTorch's."""
    return nnx.LayerNorm(width, epsilon=epsilon, dtype=jnp.float32, use_fast_variance=False, rngs=rngs)


def group_norm(width: int, groups: int, *, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """Group norm (epsilon 1e-5) in float32."""
    return nnx.GroupNorm(width, groups, epsilon=1e-5, dtype=jnp.float32, use_fast_variance=False, rngs=rngs)


def stack[T](build: Callable[[nnx.Rngs], T], count: int, *, rngs: nnx.Rngs) -> T:
    """Builds a module whose parameters are those of `count` such modules, stacked on a leading axis.

    `jax.lax.scan` over the result hands out one layer after another.
    """
    return jax.vmap(lambda key: build(nnx.Rngs(key)))(jax.random.split(rngs.params(), count))


class Mlp(nnx.Module):
    """Two linear layers with ReLU between."""

    def __init__(self, width: int, hidden: int, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        self.fc1 = linear(width, hidden, dtype, rngs=rngs)
        self.fc2 = linear(hidden, width, dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        """Transforms every token by itself."""
        return self.fc2(nnx.relu(self.fc1(x)))


class MultiHeadAttention(nnx.Module):
    """Attention with separate projections of queries, keys and values."""

    def __init__(self, width: int, heads: int, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        self.heads = heads
        self.query, self.key, self.value, self.out = (linear(width, width, dtype, rngs=rngs) for _ in range(4))

    def __call__(
        self,
        query: Float[Array, "b q c"],
        key: Float[Array, "b k c"],
        value: Float[Array, "b k c"],
        mask: Bool[Array, "b q k"] | None = None,
    ) -> Float[Array, "b q c"]:
        """Attends from queries to keys; mask is True where a query may look."""
        projected = self.query(query), self.key(key), self.value(value)
        query, key, value = (rearrange(x, "b t (n d) -> b t n d", n=self.heads) for x in projected)
        return self.out(rearrange(attention(query, key, value, mask), "b q n d -> b q (n d)"))
