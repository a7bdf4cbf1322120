"""Device mesh, table of logical axes, and the shardings that follow from them.

Programs are compiled by `jax.jit` with `NamedSharding`s on one mesh `(data, fsdp, model)` (called pjit in older code).
`data` and `fsdp` split the batch, `fsdp` also splits parameters and optimizer state, `model` splits heads and hidden
units. Modules name the logical axes of their parameters where they create them; `MESH_AXES` maps each logical axis to a
mesh axis.
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

# Logical axis -> mesh axis; None: not split. "layers" is the axis that a `jax.lax.scan` runs over: if it were split,
# every iteration would have to gather a block.
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
    """Build the `(data, fsdp, model)` mesh over all devices; an axis of -1 has all remaining devices.

    Raises:
      UserError: the product of the axes is not the number of devices, or `data` does not divide over the TPU slices.
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
            f"mesh (data, fsdp, model) = {(data, fsdp, model)} does not fit {slices} TPU slices, between which only "
            f"gradients are summed; choose data as a multiple of {slices}"
        )
    grid = mesh_utils.create_hybrid_device_mesh(
        (data // slices, fsdp, model), (slices, 1, 1), devices=devices.tolist(), allow_split_physical_axes=True
    )
    return Mesh(grid, axes, axis_types=types)


def slice_count(devices: np.ndarray) -> int:
    """Return the number of TPU slices that `devices` belong to; only the data-centre network connects slices."""
    tpus = (device for device in devices.ravel() if device.platform == "tpu")
    return max(len({getattr(device, "slice_index", 0) for device in tpus}), 1)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of scalars and other arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays whose leading axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Return the number of shards of the batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def param_shardings(
    mesh: Mesh, shapes: Mapping[str, jax.ShapeDtypeStruct], axes: Mapping[str, LogicalAxes]
) -> dict[str, NamedSharding]:
    """Return the sharding of each parameter of `shapes` that follows from its logical axes.

    A dimension that is not divisible by the size of its mesh axis is not split. This is logged, since it costs memory.
    """
    specs = {name: _spec(mesh, shapes[name].shape, axes[name]) for name in shapes}
    for name, spec in specs.items():
        for size, axis, placed in zip(shapes[name].shape, axes[name], spec, strict=False):
            if placed is None and (wanted := MESH_AXES[axis] if axis else None):
                logging.info(
                    "%s: %d is not divisible by %s=%d, this dimension is not split",
                    name,
                    size,
                    wanted,
                    mesh.shape[wanted],
                )
    return {name: NamedSharding(mesh, spec) for name, spec in specs.items()}


def _spec(mesh: Mesh | AbstractMesh, shape: tuple[int, ...], logical: tuple[str | None, ...]) -> PartitionSpec:
    if logical and len(logical) != len(shape):
        raise ValueError(f"a parameter of shape {shape} has the logical axes {logical}")
    axes = (MESH_AXES[axis] if axis else None for axis in logical)
    return PartitionSpec(
        *(axis if axis and size % mesh.shape[axis] == 0 else None for size, axis in zip(shape, axes, strict=False))
    )


def bytes_per_device(shapes: Any, shardings: Any) -> int:
    """Return the bytes that a sharded tree of arrays (or of their shapes) takes on each device."""
    pairs = zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
    return sum(math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, sharding in pairs)


def input_shard(mesh: Mesh) -> tuple[int, int]:
    """Return (index, count): which of `count` equal parts of every global batch this process reads.

    Processes whose devices hold the same rows (a `model` axis across hosts) read the same part.

    Raises:
      UserError: the parts have different sizes, or overlap without being equal.
    """
    owners = np.vectorize(lambda device: device.process_index)(mesh.devices).reshape(batch_shards(mesh), -1)
    rows = {int(process): frozenset(np.flatnonzero((owners == process).any(1)).tolist()) for process in owners.flat}
    parts = sorted(set(rows.values()), key=sorted)
    if sum(map(len, parts)) != batch_shards(mesh) or len({len(part) for part in parts}) > 1:
        raise UserError(
            f"mesh {dict(mesh.shape)} gives processes unequal or overlapping parts of the batch; choose data x fsdp as "
            "a multiple of the number of processes, or model as a multiple of the devices per process"
        )
    return parts.index(rows[jax.process_index()]), len(parts)


def global_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Join the local batches of all processes to global arrays, split over the batch axes."""
    sharding = batch_sharding(mesh)
    with jax.transfer_guard("allow"):  # with several processes JAX counts this as an implicit transfer
        return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def fetch(array: jax.Array) -> np.ndarray:
    """Return the whole array on the host; all processes must call it together if its shards are on several hosts."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return jax.device_get(array)
    with jax.transfer_guard("allow"):  # JAX fetches the gathered array by an implicit transfer
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def copy_to(mesh: Mesh, params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Replicate arrays on all devices of a mesh of this process; all processes call it together.

    An array that is replicated on these devices already is not copied again.
    """
    local = {name: value if value.is_fully_addressable else fetch(value) for name, value in params.items()}
    return jax.device_put(local, replicated(mesh))


def sum_over_processes(counts: Int[np.ndarray, "*n"]) -> Int[np.ndarray, "*n"]:
    """Sum int64 counts over all processes of a run, which must call it together.

    JAX uses 32-bit integers by default, so each number is sent as two 32-bit halves.
    """
    if jax.process_count() == 1:
        return counts
    halves = np.ascontiguousarray(counts, np.int64)[..., None].view(np.int32)
    with jax.transfer_guard("allow"):
        gathered = np.asarray(multihost_utils.process_allgather(halves))
    return np.ascontiguousarray(gathered).view(np.int64)[..., 0].sum(0)


def all_agree(yes: bool) -> bool:
    """Return whether `yes` is True in all processes of the run, which must call it together."""
    return bool(multihost_utils.process_allgather(np.asarray(yes)).all())


def wait_for_all(name: str) -> None:
    """Wait until every process of the run has called this function.

    Unlike a barrier on devices it has a time limit of a month. If a process dies, JAX's coordination service ends the
    waiting processes.

    Args:
      name: of the barrier; a process can use each name once.
    """
    from orbax.checkpoint import multihost  # the import takes a second, which would delay messages about wrong flags

    multihost.get_barrier_sync_fn()(key=name, timeout_ms=_MONTH)


def split_by_batch(activation: jax.Array) -> jax.Array:
    """Constrain an activation, whose leading axis is the batch, to be split over the batch axes of the active mesh.

    Otherwise the compiler may propagate the split of a parameter over `fsdp` to the activations, and then communicates
    activations between devices. The activation is returned unchanged without an active mesh (`jax.set_mesh`), inside
    `per_shard`, where each device computes on its own part, and if the batch is not divisible by its number of shards.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes or len(activation) % batch_shards(mesh):
        return activation
    return jax.lax.with_sharding_constraint(activation, PartitionSpec(BATCH_AXES))


def whole_for_use(params: Mapping[str, jax.Array], axes: Mapping[str, LogicalAxes]) -> dict[str, jax.Array]:
    """Gather the parameters that the active mesh splits over `fsdp`, before they are used.

    Stacked layers are returned unchanged: the scan that runs over them gathers one layer at a time.
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
    """Return a function that applies `function` to each device's own part of the batch, without communication.

    All arguments and results have the batch as leading axis. With an active mesh (`jax.set_mesh`) the function is
    called inside `jax.shard_map` with the local part of the batch; without a mesh with the whole batch.
    """

    def lifted(*args: Any) -> Any:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return function(*args)
        spec = PartitionSpec(BATCH_AXES)
        return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(*args)

    return lifted


def per_example(function: Callable[..., Any]) -> Callable[..., Any]:
    """Vectorise a function of one example over the leading batch axis, without communication.

    A loop of data-dependent length, such as the Hungarian algorithm, then does not wait for other devices.
    """
    return per_shard(jax.vmap(function))
