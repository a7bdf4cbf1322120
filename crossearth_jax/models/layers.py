"""Layers that the networks share.

`dtype` is the type of the matrix products: `linear` and `conv` cast their input to it and return it. The residual
streams (the tokens of the backbone and of both decoders) and the norms stay in float32. In bfloat16 a small update,
such as Rein's at its initial scale, would be lost to rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float

from crossearth_jax.models.parameters import ONES, ZEROS, Distribution, add_layer_axis, described, xavier_normal
from crossearth_jax.models.torch_names import LINEAR, SAME, Rule, affine, rule
from crossearth_jax.ops.attention import attention
from crossearth_jax.ops.convolution import convolution
from crossearth_jax.runtime.parallel import LogicalAxes

_ZEROS = nnx.initializers.zeros_init()  # placeholder: `parameters.initial_values` draws the real initial values


def linear(
    inputs: int,
    outputs: int,
    dtype: jnp.dtype,
    *,
    kernel: Distribution | None = None,
    bias: Distribution | None = None,
    axes: LogicalAxes = (),
    layer: type[nnx.Linear] = nnx.Linear,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """Create a linear layer. Initial values are PyTorch's unless given; `axes` are the kernel's logical axes."""
    default = Distribution("uniform", inputs**-0.5)
    return layer(
        inputs,
        outputs,
        kernel_init=_ZEROS,
        kernel_metadata=described(kernel or default, axes),
        bias_metadata=described(bias or default),
        dtype=dtype,
        rngs=rngs,
    )


def conv(
    inputs: int,
    outputs: int,
    kernel: int,
    dtype: jnp.dtype,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    use_bias: bool = True,
    initial: Distribution | None = None,
    bias: Distribution | None = None,
    axes: LogicalAxes = ("window", "window", "embed", None),
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """Create a convolution: padded to keep the size at stride 1, without padding at a larger stride.

    Initial values of kernel and bias are PyTorch's unless given; `axes` are the kernel's logical axes.
    """
    default = Distribution("uniform", (kernel**2 * inputs // groups) ** -0.5)
    return nnx.Conv(
        inputs,
        outputs,
        (kernel, kernel),
        strides=stride,
        padding="SAME" if stride == 1 else "VALID",
        kernel_dilation=dilation,
        feature_group_count=groups,
        use_bias=use_bias,
        kernel_init=_ZEROS,
        kernel_metadata=described(initial or default, axes),
        bias_metadata=described(bias or default),
        conv_general_dilated=convolution,
        dtype=dtype,
        rngs=rngs,
    )


def layer_norm(width: int, epsilon: float, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Create a layer norm in float32. As in PyTorch, the variance is computed from the deviations from the mean."""
    return nnx.LayerNorm(
        width,
        epsilon=epsilon,
        dtype=jnp.float32,
        use_fast_variance=False,
        scale_metadata=described(ONES),
        bias_metadata=described(ZEROS),
        rngs=rngs,
    )


def group_norm(width: int, groups: int, *, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """Create a group norm (epsilon 1e-5) in float32."""
    return nnx.GroupNorm(
        width,
        groups,
        epsilon=1e-5,
        dtype=jnp.float32,
        use_fast_variance=False,
        scale_metadata=described(ONES),
        bias_metadata=described(ZEROS),
        rngs=rngs,
    )


def stack[T: nnx.Module](build: Callable[[nnx.Rngs], T], count: int, *, rngs: nnx.Rngs) -> T:
    """Build a module whose parameters are those of `count` such modules, stacked on a leading axis.

    `jax.lax.scan` over the result runs one layer after another.
    """
    stacked = jax.vmap(lambda key: build(nnx.Rngs(key)))(jax.random.split(rngs.params(), count))
    add_layer_axis(stacked)
    return stacked


class Mlp(nnx.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self, width: int, hidden: int, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        kernel = xavier_normal(width, hidden)
        self.fc1 = linear(width, hidden, dtype, kernel=kernel, axes=("embed", "mlp"), rngs=rngs)
        self.fc2 = linear(hidden, width, dtype, kernel=kernel, axes=("mlp", "embed"), rngs=rngs)

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        """Transform every token independently."""
        return self.fc2(nnx.relu(self.fc1(x)))


class MultiHeadAttention(nnx.Module):
    """Multi-head attention with separate projections of queries, keys and values."""

    def __init__(self, width: int, heads: int, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        self.heads = heads
        # PyTorch initialises the three projections as one matrix with three times the outputs.
        packed = xavier_normal(width, 3 * width)
        self.query, self.key, self.value = (
            linear(width, width, dtype, kernel=packed, bias=ZEROS, axes=("embed", "heads"), rngs=rngs) for _ in range(3)
        )
        out = xavier_normal(width, width)
        self.out = linear(width, width, dtype, kernel=out, bias=ZEROS, axes=("heads", "embed"), rngs=rngs)

    def __call__(
        self,
        query: Float[Array, "b q c"],
        key: Float[Array, "b k c"],
        value: Float[Array, "b k c"],
        mask: Bool[Array, "b q k"] | None = None,
    ) -> Float[Array, "b q c"]:
        """Attend from queries to keys; `mask` is True where attention is allowed."""
        projected = self.query(query), self.key(key), self.value(value)
        query, key, value = (rearrange(x, "b t (n d) -> b t n d", n=self.heads) for x in projected)
        return self.out(rearrange(attention(query, key, value, mask), "b q n d -> b q (n d)"))


def attention_names(reference: str, ours: str) -> list[Rule]:
    """Return the name rules of a `MultiHeadAttention`; the reference packs its three input projections into one."""
    parts = ("query", "key", "value")
    return [
        rule(f"{reference}.in_proj_weight", tuple(f"{ours}/{part}/kernel" for part in parts), LINEAR),
        rule(f"{reference}.in_proj_bias", tuple(f"{ours}/{part}/bias" for part in parts), SAME),
        *affine(f"{reference}.out_proj", f"{ours}/out", LINEAR),
    ]
