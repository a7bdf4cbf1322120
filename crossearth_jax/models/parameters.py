"""The distribution of a parameter's initial values and its logical axes, stated where a module creates the parameter.

Both are metadata of the `nnx.Param`. The distributions are the reference's: PyTorch's defaults unless Mask2Former, Rein
or DINOv2 set others. Modules are created with zeros. `initial_values` then makes one uniform and one normal draw per
part of the network (`backbone`, `head`, …) and cuts all its tensors from them. XLA compiles a random generator for
every draw, so one draw per tensor, as Flax's initialisers make it, would take minutes to compile.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PRNGKeyArray

from crossearth_jax.runtime.parallel import LogicalAxes

Shape = tuple[int, ...]


class Distribution(NamedTuple):
    """Distribution of a tensor's initial values."""

    kind: Literal["uniform", "normal", "constant"]
    # "uniform": bound b of [-b, b); "normal": standard deviation; "constant": the value, or values along the last axis.
    size: float | tuple[float, ...]


ZEROS, ONES = Distribution("constant", 0.0), Distribution("constant", 1.0)


def xavier_uniform(inputs: int, outputs: int) -> Distribution:
    """Return the uniform distribution of mean 0 and variance 2 / (inputs + outputs)."""
    return Distribution("uniform", math.sqrt(6 / (inputs + outputs)))


def xavier_normal(inputs: int, outputs: int) -> Distribution:
    """Return the normal distribution of mean 0 and variance 2 / (inputs + outputs)."""
    return Distribution("normal", math.sqrt(2 / (inputs + outputs)))


def described(initial: Distribution, axes: LogicalAxes = ()) -> dict[str, Any]:
    """Return the metadata of a parameter, in the form that Flax's layers take for kernels and biases."""
    return {"initial": initial, "axes": axes}


def parameter(shape: Shape, initial: Distribution, axes: LogicalAxes = ()) -> nnx.Param:
    """Create a parameter of a module, filled with zeros until `initial_values` replaces them."""
    return nnx.Param(jnp.zeros(shape), **described(initial, axes))


def add_layer_axis(module: nnx.Module) -> None:
    """Mark the leading axis of all parameters of a module as the axis of stacked layers."""
    for _, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Param):
            axes = node.get_metadata("axes") or (None,) * (node.ndim - 1)
            node.set_metadata(axes=("layers", *axes))


def initial_values(
    distributions: Mapping[str, Distribution], shapes: Mapping[str, jax.ShapeDtypeStruct], key: PRNGKeyArray
) -> dict[str, jax.Array]:
    """Draw the float32 initial values of all parameters; can be jitted.

    The values of a part of the network (`backbone`, `head`, …) do not depend on which other parts there are.
    """
    values: dict[str, jax.Array] = {
        name: jnp.broadcast_to(jnp.asarray(d.size, jnp.float32), shapes[name].shape)
        for name, d in distributions.items()
        if d.kind == "constant"
    }
    for part in sorted({name.split("/")[0] for name in shapes}):
        for kind in ("uniform", "normal"):
            names = [name for name, d in distributions.items() if d.kind == kind and name.split("/")[0] == part]
            part_key = jax.random.fold_in(key, zlib.crc32(f"{part}/{kind}".encode()))
            cut = _draw(kind, part_key, [shapes[name].shape for name in names])
            values |= {name: jnp.asarray(distributions[name].size) * x for name, x in zip(names, cut, strict=True)}
    return values


def _draw(kind: str, key: PRNGKeyArray, shapes: Iterable[Shape]) -> list[jax.Array]:
    """Draw arrays of these shapes from one draw: standard normal, or uniform in [-1, 1)."""
    shapes = list(shapes)
    ends = np.cumsum([math.prod(shape) for shape in shapes], dtype=int).tolist()
    total = (ends[-1] if ends else 0,)
    numbers = jax.random.normal(key, total) if kind == "normal" else jax.random.uniform(key, total, minval=-1)
    return [x.reshape(shape) for x, shape in zip(jnp.split(numbers, ends[:-1]), shapes, strict=bool(shapes))]
