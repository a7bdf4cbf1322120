"""Device mesh, the logical-axis table and the shardings that follow from it.

What older code calls "pjit-sharded" is `jax.jit` with `NamedSharding`s on one mesh `(data, fsdp, model)`:
`data` and `fsdp` split the batch, `fsdp` also splits parameters and optimizer state, `model` splits heads and
hidden units. Modules name the logical axes of their parameters where they create them, and `MESH_AXES` gives each
logical axis its mesh axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from crossearth_jax.config import MeshConfig, UserError

LogicalAxes = tuple[str | None, ...]  # of the dimensions of a parameter; () replicates it

BATCH_AXES = ("data", "fsdp")
_MONTH = 30 * 24 * 3600 * 1000  # milliseconds

# Logical axis -> mesh axis. "layers" is the axis that a `jax.lax.scan` runs over: splitting it would gather a block at
# every iteration.
MESH_AXES: Mapping[str, str | None] = {
    "layers": None,
    "embed": "fsdp",
    "heads": "model",
    "mlp": "model",
    "tokens": None,
    "rank": None,
    "window": None,
    "classes": None,
}


def make_mesh(config: MeshConfig, devices: Any = None) -> Mesh:
    """Builds the `(data, fsdp, model)` mesh over all devices; an axis of -1 takes what is left.

    Raises:
      UserError: the axes do not multiply to the number of devices.
    """
    devices = np.asarray(jax.devices() if devices is None else devices).ravel()
    shape = [config.data, config.fsdp, config.model]
    known = math.prod(size for size in shape if size != -1)
    if shape.count(-1) > 1 or known <= 0 or devices.size % known or (-1 not in shape and known != devices.size):
        raise UserError(
            f"mesh (data, fsdp, model) = {tuple(shape)} does not fit {devices.size} devices; "
            "choose sizes whose product is that number, or one -1"
        )
    data, fsdp, model = (devices.size // known if size == -1 else size for size in shape)
    axes, types = ("data", "fsdp", "model"), (jax.sharding.AxisType.Auto,) * 3
    slices = slice_count(devices)
    if slices == 1:
        return jax.make_mesh((data, fsdp, model), axes, axis_types=types, devices=devices)
    if data % slices:
        raise UserError(
            f"mesh (data, fsdp, model) = {(data, fsdp, model)} does not fit {slices} TPU slices: between slices only "
            f"gradients are summed, so data has to be a multiple of {slices}"
        )
    grid = mesh_utils.create_hybrid_device_mesh(
        (data // slices, fsdp, model), (slices, 1, 1), devices=devices.tolist(), allow_split_physical_axes=True
    )
    return Mesh(grid, axes, axis_types=types)


def slice_count(devices: np.ndarray) -> int:
    """TPU slices that `devices` belong to; between slices there is only the data-centre network."""
    tpus = (device for device in devices.ravel() if device.platform == "tpu")
    return max(len({getattr(device, "slice_index", 0) for device in tpus}), 1)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of scalars and of everything every device needs whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays whose leading axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """How many pieces the batch is cut into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def param_shardings(
    mesh: Mesh, shapes: Mapping[str, jax.ShapeDtypeStruct], axes: Mapping[str, LogicalAxes]
) -> dict[str, NamedSharding]:
    """Gives each parameter of `shapes` the sharding that its logical axes say.

    A dimension that its mesh axis does not divide stays whole; that is logged, since it costs memory.
    """
    specs = {name: _spec(mesh, shapes[name].shape, axes[name]) for name in shapes}
    for name, spec in specs.items():
        for size, axis, placed in zip(shapes[name].shape, axes[name], spec, strict=False):
            if placed is None and (wanted := MESH_AXES[axis] if axis else None):
                logging.info("%s: %d is not divisible by %s=%d, kept whole", name, size, wanted, mesh.shape[wanted])
    return {name: NamedSharding(mesh, spec) for name, spec in specs.items()}


def _spec(mesh: Mesh | AbstractMesh, shape: tuple[int, ...], logical: tuple[str | None, ...]) -> PartitionSpec:
    if logical and len(logical) != len(shape):
        raise ValueError(f"a parameter of shape {shape} has the logical axes {logical}")
    axes = (MESH_AXES[axis] if axis else None for axis in logical)
    return PartitionSpec(
        *(axis if axis and size % mesh.shape[axis] == 0 else None for size, axis in zip(shape, axes, strict=False))
    )


def bytes_per_device(shapes: Any, shardings: Any) -> int:
    """Bytes that a sharded tree of arrays (or their shapes) takes on each device."""
    pairs = zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
    return sum(math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, sharding in pairs)


def input_shard(mesh: Mesh) -> tuple[int, int]:
    """Which part of every global batch this process reads, as (index, count).

    Processes whose devices hold the same rows (a `model` axis across hosts) read the same part.

    Raises:
      UserError: the parts overlap without being equal.
    """
    owners = np.vectorize(lambda device: device.process_index)(mesh.devices).reshape(batch_shards(mesh), -1)
    rows = {int(process): frozenset(np.flatnonzero((owners == process).any(1)).tolist()) for process in owners.flat}
    parts = sorted(set(rows.values()), key=sorted)
    if sum(map(len, parts)) != batch_shards(mesh) or len({len(part) for part in parts}) > 1:
        raise UserError(
            f"mesh {dict(mesh.shape)} gives processes unequal, overlapping parts of the batch; choose data x fsdp a "
            "multiple of the number of processes, or model a multiple of the devices of each"
        )
    return parts.index(rows[jax.process_index()]), len(parts)


def global_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Joins the processes' local batches into global arrays, split over the batch axes."""
    sharding = batch_sharding(mesh)
    with jax.transfer_guard("allow"):  # with several processes JAX would not take this for a transfer that is meant
        return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def fetch(array: jax.Array) -> np.ndarray:
    """The whole array on the host; all processes must call it together if it is spread over them."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return jax.device_get(array)
    with jax.transfer_guard("allow"):  # JAX fetches what it has gathered in its own way
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def copy_to(mesh: Mesh, params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Copies arrays whole to every device of a mesh of this process; all processes call it together.

    An array that lies whole on these devices already is not copied again.
    """
    local = {name: value if value.is_fully_addressable else fetch(value) for name, value in params.items()}
    return jax.device_put(local, replicated(mesh))


def sum_over_processes(counts: Int[np.ndarray, "*n"]) -> Int[np.ndarray, "*n"]:
    """Sums int64 counts over all processes of a run, which call it together.

    JAX holds integers in 32 bits, so each number travels as its two halves.
    """
    if jax.process_count() == 1:
        return counts
    halves = np.ascontiguousarray(counts, np.int64)[..., None].view(np.int32)
    with jax.transfer_guard("allow"):
        gathered = np.asarray(multihost_utils.process_allgather(halves))
    return np.ascontiguousarray(gathered).view(np.int64)[..., 0].sum(0)


def all_agree(yes: bool) -> bool:
    """Whether all processes of the run say yes; they must ask together."""
    return bool(multihost_utils.process_allgather(np.asarray(yes)).all())


def wait_for_all(name: str) -> None:
    """Waits until every process of the run has come here, for as long as the slowest of them works.

    Unlike a barrier of devices it has no time limit to speak of, yet nobody waits for the dead: when a process dies,
    JAX's coordination service ends the others.

    Args:
      name: of the barrier; a process may come to it once.
    """
    from orbax.checkpoint import multihost  # takes a second to import, which a command's wrong flag need not wait for

    multihost.get_barrier_sync_fn()(key=name, timeout_ms=_MONTH)


def split_by_batch(activation: jax.Array) -> jax.Array:
    """Pins an activation, whose leading axis is the batch, to the batch axes of the active mesh.

    Without it a compiler may carry the split of a parameter over `fsdp` on to the activations it is applied to, and
    then sums and moves those between devices. Left as it is where there is no mesh (`jax.set_mesh`), where a device
    sees its own part anyway (`per_shard`), and where the batch does not divide.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes or len(activation) % batch_shards(mesh):
        return activation
    return jax.lax.with_sharding_constraint(activation, PartitionSpec(BATCH_AXES))


def whole_for_use(params: Mapping[str, jax.Array], axes: Mapping[str, LogicalAxes]) -> dict[str, jax.Array]:
    """Gathers the parameters that the active mesh splits over `fsdp`, where they are applied whole.

    Stacks of layers are left alone: the scan that runs over them gathers one layer at a time.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes or mesh.shape["fsdp"] == 1:
        return dict(params)

    def gathered(name: str, value: jax.Array) -> jax.Array:
        if "layers" in axes[name]:
            return value
        spec = _spec(mesh, value.shape, axes[name])
        return jax.lax.with_sharding_constraint(value, PartitionSpec(*(None if x in BATCH_AXES else x for x in spec)))

    return {name: gathered(name, value) for name, value in params.items()}


def per_shard(function: Callable[..., Any]) -> Callable[..., Any]:
    """Runs a function of batched arrays on each device's own part of the batch, without communication.

    All arguments and results have the batch as leading axis. Under an active mesh (`jax.set_mesh`) the function is
    called inside `jax.shard_map`, so it sees a local batch; without one it sees the whole batch.
    """

    def lifted(*args: Any) -> Any:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return function(*args)
        spec = PartitionSpec(BATCH_AXES)
        return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(*args)

    return lifted


def per_example(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lifts a function of one example to the leading batch axis, without communication.

    A loop with a data-dependent length, such as the Hungarian algorithm, then never waits for another device.
    """
    return per_shard(jax.vmap(function))
