"""Which collectives a compiled program contains, over which mesh axes, and why the shardings cause them."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from crossearth_jax.aot.hlo import COLLECTIVES, COPIES, Instruction, Program, Shape
from crossearth_jax.config import UserError
from crossearth_jax.runtime.parallel import BATCH_AXES, slice_count

BETWEEN_SLICES = "all-reduce between slices"  # the part of a sum that crosses the data-centre network
SMALL = 4096  # elements up to which a sum over the batch is one of losses, metrics or norms

# Reasons, in the words of the mesh's axes (`crossearth_jax.runtime.parallel`).
GRADIENTS = "gradients of trainable parameters and of what depends on nothing else, summed over the batch axes"
SUMS = "losses, metrics and norms, summed over the batch axes or over split parameters"
PARAMETERS = "parameters whose `embed` dimension is split over fsdp, gathered for use"
REDUCED = "gradients of parameters split over fsdp, each device keeping its part"
ACTIVATIONS = "activations of heads and hidden units, split over model"
UNEXPLAINED = ""


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction."""

    kind: str
    axes: tuple[str, ...]  # mesh axes that its groups span
    group: int  # devices that exchange data
    arrays: tuple[Shape, ...]  # results on one device
    times: float  # how often it runs in a step
    where: str  # the operation of the model it comes from
    share: float = 1.0  # of the arrays that one device exchanges, more if it is padded
    reason: str = UNEXPLAINED

    @property
    def bytes(self) -> float:
        """Bytes that each device sends in a step with a ring algorithm."""
        result = self.share * sum(shape.nbytes for shape in self.arrays)
        share = (self.group - 1) / max(self.group, 1)
        factor = {
            "all-reduce": 2 * share, BETWEEN_SLICES: 2 * share,
            "reduce-scatter": self.group * share, "collective-permute": 1.0,
        }  # fmt: skip
        return self.times * result * factor.get(self.kind, share)

    def __str__(self) -> str:
        arrays = ", ".join(f"{shape.dtype}[{','.join(map(str, shape.dims))}]" for shape in self.arrays[:4])
        more = f" and {len(self.arrays) - 4} more" if len(self.arrays) > 4 else ""
        return f"{self.kind} over {'+'.join(self.axes) or 'nothing'} of {arrays}{more} ({self.where or 'no name'})"


def find(program: Program, mesh: Mesh) -> list[Collective]:
    """All collectives of a program compiled for `mesh`.

    An asynchronous collective appears several times in the text (its start, what runs meanwhile, its end), always
    under one channel; it is counted once.

    A mesh of several TPU slices is compiled as one of them, its first: what they exchange are transfers to the hosts.
    """
    slices = slice_count(mesh.devices)
    found: dict[str, Collective] = {}
    for computation, instruction, times in program.executed():
        if instruction.opcode == "send" and '"xla_megascale_runtime"' in instruction.attributes:
            found[instruction.name] = _between_slices(program, computation, instruction, times, slices)
            continue
        kind = instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        channel = instruction.attribute(r"channel_id=(\d+)") or instruction.name
        if channel in found:
            continue
        groups = device_groups(instruction, mesh.size // slices)
        arrays, count = instruction.shapes, len(instruction.operands)
        if len(arrays) >= 2 * count:
            arrays = arrays[count : 2 * count]  # of an asynchronous start: its operands come first
        arrays = tuple(
            part
            for operand, array in zip(instruction.operands, arrays, strict=False)
            for part in _split_like(program.joined(computation, operand), array)
        )
        if computation.startswith("all-reduce-scatter"):
            # A TPU writes a reduce-scatter as an all-reduce whose slice is taken in the same fusion.
            kind, arrays = "reduce-scatter", list(program.computations[computation].values())[-1].shapes
        found[channel] = Collective(
            kind, mesh_axes(groups, mesh), max(map(len, groups)), arrays, times,
            instruction.attribute(r'op_name="([^"]*)"'),
        )  # fmt: skip
    return [collective for collective in found.values() if collective.group > 1]


def _between_slices(program: Program, computation: str, send: Instruction, times: float, slices: int) -> Collective:
    """A transfer to the other slices: of a whole array, or of a device's padded share of one that its slice has summed.

    Raises:
      UserError: it is part of another collective than a sum.
    """
    kind = send.attribute(r'_xla_megascale_transfer_type="(\w+)"')
    if kind != "ALL_REDUCE":
        raise UserError(f"crossearth_jax/aot/collectives.py knows sums between slices only, found {kind} ({send.name})")
    arrays = _whole(program, computation, send.operands[0])
    share = send.shapes[0].nbytes / sum(array.nbytes for array in arrays)
    return Collective(BETWEEN_SLICES, ("data",), slices, arrays, times, send.name, share)


def _whole(program: Program, computation: str, name: str) -> tuple[Shape, ...]:
    """What the named value is a share of, if it is one, and what it was joined from, if it was."""
    instructions = program.computations[computation]
    value = instructions[name]
    while value.opcode in ("bitcast", *COPIES) or value.pads:
        value = instructions[value.operands[0]]
    if value.opcode == "get-tuple-element" and instructions[value.operands[0]].opcode in COLLECTIVES:
        several = instructions[value.operands[0]]
        value = instructions[several.operands[int(value.attribute(r"index=(\d+)"))]]
    elif value.opcode in (*COLLECTIVES, "fusion", "dynamic-slice"):
        value = instructions[value.operands[0]]
    return _split_like(program.joined(computation, value.name), value.shapes[0])


def _split_like(joined: tuple[Shape, ...], array: Shape) -> tuple[Shape, ...]:
    """A collective's result, cut into those of the arrays that were joined for it; padding belongs to none."""
    whole = sum(part.size for part in joined)
    times = array.size // whole if whole else 0  # as large: several devices' parts, if they are gathered
    return tuple(part._replace(dims=(part.size * times,)) for part in joined) or (array,)


def device_groups(instruction: Instruction, devices: int) -> list[tuple[int, ...]]:
    """Groups of devices, as positions in the mesh, that exchange data: every notation of HLO.

    `{{0,1},{2,3}}`; `[2,2]<=[4]` with an optional transposition `T(1,0)`; `mesh['data'=2,'model'=2] {'model'}`.
    """
    text = instruction.attributes
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", text):
        return [(int(a), int(b)) for a, b in re.findall(r"(\d+),(\d+)", pairs.group(1)) if a != b] or [(0,)]
    if listed := re.search(r"replica_groups=\{(\{.*?\})\}", text):
        return [tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", listed.group(1))]
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape, source, order = (tuple(map(int, part.split(","))) if part else None for part in iota.groups())
        assert shape and source
        return [tuple(group) for group in np.arange(devices).reshape(source).transpose(order).reshape(shape).tolist()]
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{((?:'\w+',?)*)\}", text):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named.group(1))}
        over = [list(sizes).index(name) for name in re.findall(r"'(\w+)'", named.group(2))]
        grid = np.moveaxis(np.arange(devices).reshape(tuple(sizes.values())), over, range(-len(over), 0))
        return [tuple(group) for group in grid.reshape(-1, math.prod(grid.shape[-len(over) :])).tolist()]
    if "replica_groups=" in text:
        raise UserError(f"crossearth_jax/aot/collectives.py cannot read the groups of devices in '{text[:200]}'")
    return [tuple(range(devices))]


def mesh_axes(groups: Iterable[tuple[int, ...]], mesh: Mesh) -> tuple[str, ...]:
    """Mesh axes along which the devices of a group differ."""
    shape = tuple(mesh.shape.values())
    differ = [False] * len(shape)
    for group in groups:
        coordinates = np.stack(np.unravel_index(np.asarray(group), shape))
        differ = [a or bool(b) for a, b in zip(differ, np.ptp(coordinates, axis=1) > 0, strict=True)]
    return tuple(name for name, different in zip(mesh.axis_names, differ, strict=True) if different)


def explain(
    found: Iterable[Collective],
    shardings: Mapping[str, NamedSharding],
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    trainable: Iterable[str],
    shared: Iterable[int] = (),
) -> list[Collective]:
    """Gives every collective the reason that the shardings offer, or none.

    Args:
      found: of `find`.
      shardings: of all parameters.
      shapes: of all parameters.
      trainable: names of those with a gradient.
      shared: numbers of elements of what is computed from trainable parameters alone (`origins.shared_sizes`).
    """
    found = list(found)
    sizes = ParameterSizes(shardings, shapes, set(trainable), shared)
    sliced = any(collective.kind == BETWEEN_SLICES for collective in found)
    return [dataclasses.replace(collective, reason=_reason(collective, sizes, sliced)) for collective in found]


def _reason(collective: Collective, sizes: ParameterSizes, sliced: bool) -> str:
    axes = set(collective.axes)
    if axes <= {"model"}:
        return ACTIVATIONS
    if collective.kind == "all-reduce" and all(shape.size <= SMALL for shape in collective.arrays):
        return SUMS
    if not axes <= set(BATCH_AXES):
        return UNEXPLAINED
    if collective.kind == "all-reduce" and all(s.size <= SMALL or s.size in sizes.gradients for s in collective.arrays):
        return GRADIENTS
    if axes == {"fsdp"}:
        if collective.kind == "all-gather" and all(s.size in sizes.gathered for s in collective.arrays):
            return PARAMETERS
        if collective.kind == "reduce-scatter" and all(s.size in sizes.kept for s in collective.arrays):
            return REDUCED
    # Between slices a sum over the batch has three stages: within the slice, each device's share of it between slices,
    # and the gathering of the shares.
    if collective.kind == BETWEEN_SLICES or (sliced and collective.kind in ("all-gather", "reduce-scatter")):
        parts = collective.group if collective.kind == "reduce-scatter" else 1
        counts = [shape.size * parts for shape in collective.arrays]
        if all(count <= SMALL for count in counts):
            return SUMS
        if all(count <= SMALL or count in sizes.gradients for count in counts):
            return GRADIENTS
    return UNEXPLAINED


class ParameterSizes:
    """Numbers of elements by which a collective on parameters or their gradients is told from one on activations."""

    def __init__(
        self,
        shardings: Mapping[str, NamedSharding],
        shapes: Mapping[str, jax.ShapeDtypeStruct],
        trainable: set[str],
        shared: Iterable[int] = (),
    ):
        self.gradients: set[int] = set(shared)  # and of a trainable parameter: whole, or a device's part of it
        self.gathered: set[int] = set()  # of a parameter split over fsdp, once gathered
        self.kept: set[int] = set()  # of a device's part of such a parameter
        for name, sharding in shardings.items():
            shape = shapes[name].shape
            part = math.prod(sharding.shard_shape(shape))
            split = sharding.mesh.shape["fsdp"] if "fsdp" in jax.tree.leaves(tuple(sharding.spec)) else 1
            layers = shape[0] if len(shape) > 2 else 1  # of a scanned parameter one layer may be treated at a time
            for count in (part, part // layers) if part % layers == 0 else (part,):
                if name in trainable:
                    self.gradients |= {count, count * split}
                if split > 1:
                    self.gathered.add(count * split)
                    self.kept.add(count)


def bytes_by_kind(found: Iterable[Collective]) -> dict[str, float]:
    """Bytes that each device sends in a step, by kind."""
    totals: dict[str, float] = collections.defaultdict(float)
    for collective in found:
        totals[collective.kind] += collective.bytes
    return dict(sorted(totals.items()))
