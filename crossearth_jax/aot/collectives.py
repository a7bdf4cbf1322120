"""Find the collectives of a compiled program, their mesh axes, and the shardings that cause them."""

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

BETWEEN_SLICES = "all-reduce between slices"  # the part of a sum that uses the data-centre network
SMALL = 4096  # elements; a smaller sum over the batch is taken for one of losses, metrics or norms
# For several TPU slices the compiler may exchange partial sums of the gradient of a bias and add them afterwards: found
# were up to 32 of them.
PARTIAL_SUMS = 32

# Reasons of collectives; the axes are those of `crossearth_jax.runtime.parallel`.
GRADIENTS = "gradients of trainable parameters and of values computed from them alone, summed over the batch axes"
SUMS = "losses, metrics and norms, summed over the batch axes or over split parameters"
PARAMETERS = "parameters whose `embed` dimension is split over fsdp, gathered for use"
REDUCED = "gradients of parameters split over fsdp, each device keeping its part"
ACTIVATIONS = "activations of heads and hidden units, split over model"
UNEXPLAINED = ""


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction."""

    kind: str
    axes: tuple[str, ...]  # mesh axes that its device groups span
    group: int  # number of devices that exchange data
    arrays: tuple[Shape, ...]  # results on one device
    times: float  # number of executions in a step
    where: str  # name of the operation in the model
    share: float = 1.0  # fraction of the arrays that one device exchanges, including padding
    reason: str = UNEXPLAINED

    @property
    def bytes(self) -> float:
        """Bytes that each device sends in a step, with a ring algorithm."""
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
    """Return all collectives of a program compiled for `mesh`.

    An asynchronous collective appears several times in the text (start, overlapping computation, end) with the same
    channel. It is counted once.

    For a mesh of several TPU slices the program is that of the first slice. The exchange between slices appears as
    transfers to the hosts.
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
            arrays = arrays[count : 2 * count]  # an asynchronous start returns its operands before its results
        arrays = tuple(
            part
            for operand, array in zip(instruction.operands, arrays, strict=False)
            for part in _split_like(program.joined(computation, operand), array)
        )
        if computation.startswith("all-reduce-scatter"):
            # The TPU compiler writes a reduce-scatter as an all-reduce and a slice in the same fusion.
            kind, arrays = "reduce-scatter", list(program.computations[computation].values())[-1].shapes
        found[channel] = Collective(
            kind, mesh_axes(groups, mesh), max(map(len, groups)), arrays, times,
            instruction.attribute(r'op_name="([^"]*)"'),
        )  # fmt: skip
    return [collective for collective in found.values() if collective.group > 1]


def _between_slices(program: Program, computation: str, send: Instruction, times: float, slices: int) -> Collective:
    """Return the collective that a transfer between slices belongs to.

    The transfer sends whole arrays, or one device's padded share of arrays that its slice has summed.

    Raises:
      UserError: the transfer belongs to a collective other than a sum.
    """
    kind = send.attribute(r'_xla_megascale_transfer_type="(\w+)"')
    if kind != "ALL_REDUCE":
        raise UserError(f"found {kind} between slices ({send.name}); crossearth_jax/aot/collectives.py reads sums only")
    arrays = _whole(program, computation, send.operands[0])
    share = send.shapes[0].nbytes / sum(array.nbytes for array in arrays)
    return Collective(BETWEEN_SLICES, ("data",), slices, arrays, times, send.name, share)


def _whole(program: Program, computation: str, name: str) -> tuple[Shape, ...]:
    """Return the arrays behind the named value: the whole that it is a share of, split into its concatenated parts."""
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
    """Split the result of a collective into the arrays that were concatenated for it; padding is left out."""
    whole = sum(part.size for part in joined)
    times = array.size // whole if whole else 0  # above 1 if the parts of several devices are gathered
    return tuple(part._replace(dims=(part.size * times,)) for part in joined) or (array,)


def device_groups(instruction: Instruction, devices: int) -> list[tuple[int, ...]]:
    """Return the groups of devices that exchange data, as positions in the mesh, from any notation of HLO.

    The notations are `{{0,1},{2,3}}`, `[2,2]<=[4]` with an optional transposition `T(1,0)`, and
    `mesh['data'=2,'model'=2] {'model'}`.

    Raises:
      UserError: the groups are written in another notation.
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
    """Return the names of the mesh axes along which the devices within a group have different positions."""
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
    """Return the collectives with their reason in the shardings; `UNEXPLAINED` if there is none.

    Args:
      found: result of `find`.
      shardings: of all parameters.
      shapes: of all parameters.
      trainable: names of the parameters with a gradient.
      shared: numbers of elements of values computed from trainable parameters alone (`origins.shared_sizes`).
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
    if collective.kind == "all-reduce" and all(sizes.summed(shape.size, sliced) for shape in collective.arrays):
        return GRADIENTS
    if axes == {"fsdp"}:
        if collective.kind == "all-gather" and all(s.size in sizes.gathered for s in collective.arrays):
            return PARAMETERS
        if collective.kind == "reduce-scatter" and all(s.size in sizes.kept for s in collective.arrays):
            return REDUCED
    # A sum over the batch across slices has three stages: a sum within the slice, a sum of each device's share between
    # slices, and the gathering of the shares.
    if collective.kind == BETWEEN_SLICES or (sliced and collective.kind in ("all-gather", "reduce-scatter")):
        parts = collective.group if collective.kind == "reduce-scatter" else 1
        counts = [shape.size * parts for shape in collective.arrays]
        if all(count <= SMALL for count in counts):
            return SUMS
        if all(sizes.summed(count, sliced) for count in counts):
            return GRADIENTS
    return UNEXPLAINED


class ParameterSizes:
    """Numbers of elements that identify collectives on parameters or their gradients."""

    def __init__(
        self,
        shardings: Mapping[str, NamedSharding],
        shapes: Mapping[str, jax.ShapeDtypeStruct],
        trainable: set[str],
        shared: Iterable[int] = (),
    ):
        self.gradients: set[int] = set(shared)  # and those of trainable parameters, whole or one device's part
        self.gathered: set[int] = set()  # of parameters split over fsdp, after gathering
        self.kept: set[int] = set()  # of one device's part of such parameters
        # Of the biases of trainable layers: the last axis of a kernel is as long as its bias.
        self.biases = {shapes[name].shape[-1] for name in trainable if shapes[name].shape}
        for name, sharding in shardings.items():
            shape = shapes[name].shape
            part = math.prod(sharding.shard_shape(shape))
            split = sharding.mesh.shape["fsdp"] if "fsdp" in jax.tree.leaves(tuple(sharding.spec)) else 1
            layers = shape[0] if len(shape) > 2 else 1  # the layers of a scanned parameter may be processed one by one
            for count in (part, part // layers) if part % layers == 0 else (part,):
                if name in trainable:
                    self.gradients |= {count, count * split}
                if split > 1:
                    self.gathered.add(count * split)
                    self.kept.add(count)

    def summed(self, count: int, sliced: bool) -> bool:
        """Return whether a sum of `count` numbers over the batch is one of a gradient, or small."""
        partial = sliced and any(count % bias == 0 and count // bias <= PARTIAL_SUMS for bias in self.biases)
        return count <= SMALL or count in self.gradients or partial


def bytes_by_kind(found: Iterable[Collective]) -> dict[str, float]:
    """Return the bytes that each device sends in a step, by kind of collective."""
    totals: dict[str, float] = collections.defaultdict(float)
    for collective in found:
        totals[collective.kind] += collective.bytes
    return dict(sorted(totals.items()))
