"""What is said of a parameter where a module creates it: the distribution of its initial values, and its logical axes.

Both are metadata of the `nnx.Param`. The values are the reference's (PyTorch's defaults unless Mask2Former, Rein or
DINOv2 set others). Modules are created with zeros: `initial_values` cuts all tensors of one part of the network that
share a distribution from one draw, since XLA compiles a random generator of its own for every draw, and one for each
of Flax's initialisers would take minutes.
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
    """Where a tensor's numbers come from."""

    kind: Literal["uniform", "normal", "constant"]
    size: float | tuple[float, ...]  # half of the width, standard deviation, value (or the values of the last axis)


ZEROS, ONES = Distribution("constant", 0.0), Distribution("constant", 1.0)


def xavier_uniform(inputs: int, outputs: int) -> Distribution:
    """Uniform, of variance 2 / (inputs + outputs)."""
    return Distribution("uniform", math.sqrt(6 / (inputs + outputs)))


def xavier_normal(inputs: int, outputs: int) -> Distribution:
    """Normal, of variance 2 / (inputs + outputs)."""
    return Distribution("normal", math.sqrt(2 / (inputs + outputs)))


def described(initial: Distribution, axes: LogicalAxes = ()) -> dict[str, Any]:
    """Metadata of a parameter, as Flax's layers take it for their kernels and biases."""
    return {"initial": initial, "axes": axes}


def parameter(shape: Shape, initial: Distribution, axes: LogicalAxes = ()) -> nnx.Param:
    """A parameter of a module."""
    return nnx.Param(jnp.zeros(shape), **described(initial, axes))


def add_layer_axis(module: nnx.Module) -> None:
    """Says of all parameters of a module that layers were stacked on their leading axis."""
    for _, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Param):
            axes = node.get_metadata("axes") or (None,) * (node.ndim - 1)
            node.set_metadata(axes=("layers", *axes))


def initial_values(
    distributions: Mapping[str, Distribution], shapes: Mapping[str, jax.ShapeDtypeStruct], key: PRNGKeyArray
) -> dict[str, jax.Array]:
    """Draws the values of all parameters, float32; jittable.

    A part of the network (`backbone`, `head`, …) gets the same values whatever other parts there are.
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
    """Numbers of unit size in these shapes, all from one draw."""
    shapes = list(shapes)
    ends = np.cumsum([math.prod(shape) for shape in shapes], dtype=int).tolist()
    total = (ends[-1] if ends else 0,)
    numbers = jax.random.normal(key, total) if kind == "normal" else jax.random.uniform(key, total, minval=-1)
    return [x.reshape(shape) for x, shape in zip(jnp.split(numbers, ends[:-1]), shapes, strict=bool(shapes))]
