"""Parse the text of a compiled program (HLO): instructions, numbers of executions, floating-point operations.

XLA's own cost analysis counts the body of a loop once, which is wrong for a network scanned over 24 blocks. Here every
instruction counts as often as the loops around it run. A loop whose length depends on data counts once.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from crossearth_jax.config import UserError

BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5} | {
    f"{kind}{bits}": bits // 8 for kind in ("s", "u", "f", "bf", "c") for bits in (8, 16, 32, 64, 128)
}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
COPIES = ("copy", "copy-start", "copy-done")
NOT_ESTIMATED = 2**63 - 1  # value of `estimated_cycles` for a kernel without an estimate

_SCALAR_FUNCTIONS = ("reduce", "reduce-window", "scatter", "sort", "select-and-scatter", "map")

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?)\s([a-z][a-z0-9\-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_SHAPE = re.compile(r"\b([a-z]+\d+(?:e\d+m\d+\w*)?|pred)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Shape(NamedTuple):
    """Element type and dimensions of an array in the program."""

    dtype: str
    dims: tuple[int, ...]
    fast_memory: bool  # kept next to the compute units, not in the main memory

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def nbytes(self) -> int:
        """Bytes without padding; 1 per element of an unknown type."""
        return int(self.size * BYTES.get(self.dtype, 1))


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction, a line of a computation."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # several if it returns a tuple
    operands: tuple[str, ...]
    attributes: str  # text after the operands

    def attribute(self, pattern: str) -> str:
        """Return the first group of a pattern in the attributes, or ""."""
        match = re.search(pattern, self.attributes)
        return match.group(1) if match else ""

    @property
    def pads(self) -> bool:
        """Whether the TPU pads its operand to whole tiles here, or removes the padding."""
        return self.attribute(r'custom_call_target="(ZeroCrop)"') != ""


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations by name, each with its instructions in order."""

    computations: dict[str, dict[str, Instruction]]
    entry: str

    def executed(self) -> Iterator[tuple[str, Instruction, float]]:
        """Yield (computation, instruction, number of executions); all branches of a conditional count."""
        yield from self._executed(self.entry, 1.0)

    def _executed(self, computation: str, times: float) -> Iterator[tuple[str, Instruction, float]]:
        for instruction in self.computations[computation].values():
            yield computation, instruction, times
            inner = times * self.trips(instruction) if instruction.opcode == "while" else times
            for called in self.called(instruction):
                yield from self._executed(called, inner)

    def called(self, instruction: Instruction) -> list[str]:
        """Return the computations that an instruction runs, except for scalar functions such as that of a reduction."""
        if instruction.opcode == "while":
            return [instruction.attribute(r"body=%?([\w.\-]+)")]
        if instruction.opcode in (*COLLECTIVES, *_SCALAR_FUNCTIONS):
            return []
        names = _CALLED.findall(instruction.attributes)
        branches = _BRANCHES.search(instruction.attributes)
        names += re.findall(r"[\w.\-]+", branches.group(1)) if branches else []
        return [name for name in names if name in self.computations]

    def trips(self, loop: Instruction) -> int:
        """Return the number of iterations of a `while`: the limit of its counter; 1 if it depends on data."""
        known = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
        if known:
            return int(known)
        condition = self.computations[loop.attribute(r"condition=%?([\w.\-]+)")]
        constants = [i.attributes for i in condition.values() if i.opcode == "constant" and not i.shapes[0].dims]
        compared = [i for i in condition.values() if "direction=LT" in i.attributes or i.opcode == "fusion"]
        numbers = [int(text) for text in constants if re.fullmatch(r"-?\d+", text)]
        return numbers[0] if len(numbers) == 1 and len(compared) == 1 else 1

    def flops(self) -> float:
        """Return the floating-point operations of all matrix products and convolutions; multiply-add counts as two."""
        total = 0.0
        for computation, instruction, times in self.executed():
            if count := _counter(instruction):
                left, right = (self.computations[computation][name].shapes[0].dims for name in instruction.operands[:2])
                total += times * count(instruction, left, right, instruction.shapes[0].dims)
        return total

    def joined(
        self, computation: str, name: str, callers: tuple[tuple[str, Instruction], ...] = ()
    ) -> tuple[Shape, ...]:
        """Return the arrays whose concatenation the named value is, also inside fusions or padded; () if it is none.

        Args:
          computation: where the value is computed.
          name: of the value.
          callers: the fusions that the computation is part of, outermost first, each with the computation around it.
        """
        value = self.computations[computation][name]
        if value.opcode in ("bitcast", "reshape", *COPIES) or value.pads:
            return self.joined(computation, value.operands[0], callers)
        if value.opcode == "fusion":
            (inside,) = self.called(value)
            return self.joined(inside, list(self.computations[inside])[-1], (*callers, (computation, value)))
        if value.opcode == "parameter" and callers:
            *outer, (computation, fusion) = callers
            return self.joined(computation, fusion.operands[int(value.attributes)], tuple(outer))
        if value.opcode == "dynamic-update-slice":  # the arrays are written into a buffer one after the other
            buffer, update = value.operands[:2]
            return self.joined(computation, buffer, callers) + self._parts(computation, update, callers)
        if value.opcode != "concatenate":
            return ()
        return tuple(part for operand in value.operands for part in self._parts(computation, operand, callers))

    def _parts(self, computation: str, name: str, callers: tuple[tuple[str, Instruction], ...]) -> tuple[Shape, ...]:
        """Return the arrays that the named value was joined from, or itself."""
        return self.joined(computation, name, callers) or self.computations[computation][name].shapes[:1]

    def cycles(self) -> float:
        """Return the sum of the TPU compiler's estimated cycles, where it gives any; waiting times are not included."""
        found = [(i.attribute(r'"estimated_cycles":"(\d+)"'), times) for _, i, times in self.executed()]
        return sum((times * int(cycles) for cycles, times in found if cycles and int(cycles) != NOT_ESTIMATED), 0.0)


def parse(text: str) -> Program:
    """Parse the text of a compiled program."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations.setdefault(header.group(2), {})
            entry = header.group(2) if header.group(1) else entry
        elif found := _INSTRUCTION.match(line):
            name, shapes, opcode, rest = found.groups()
            end = _closing(rest)
            inside, attributes = rest[:end], rest[end + 1 :]
            current[name] = Instruction(
                name, opcode, read_shapes(shapes), tuple(re.findall(r"%([\w.\-]+)", inside)),
                inside if opcode in ("constant", "parameter") else attributes,
            )  # fmt: skip
    return Program(computations, entry)


def read_shapes(text: str) -> tuple[Shape, ...]:
    """Return all array types in a text; a memory space other than 0 in the layout means fast memory."""
    return tuple(
        Shape(dtype, tuple(int(n) for n in dims.split(",") if n), re.search(r"S\([1-9]\)", layout or "") is not None)
        for dtype, dims, layout in _SHAPE.findall(text)
    )


def _closing(text: str) -> int:
    """Return the position of the parenthesis that closes the one directly before `text`."""
    depth = 1
    for position, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return position
    return len(text)


def product_flops(
    instruction: Instruction, left: tuple[int, ...], right: tuple[int, ...], result: tuple[int, ...]
) -> float:
    """Return the operations of a matrix product, an HLO instruction or a call to cuBLAS."""
    contracted = instruction.attribute(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)')
    return 2.0 * math.prod(result) * math.prod(left[int(i)] for i in re.findall(r"\d+", contracted))


def convolution_flops(
    instruction: Instruction, left: tuple[int, ...], right: tuple[int, ...], result: tuple[int, ...]
) -> float:
    """Return the operations of a convolution without those on padding.

    TPU programs express batched matrix products as padded convolutions.
    """
    inputs, kernel, outputs = re.split(r"_|->", instruction.attribute(r"dim_labels=([\w?]+->\w+)").replace("?", ""))
    window = {
        name: values.split("x")
        for name, values in re.findall(r"(\w+)=([\w\-]+)", instruction.attribute(r"window=\{([^}]*)\}"))
    }
    products = left[inputs.index("b")] * right[kernel.index("i")] * result[outputs.index("f")]
    products //= int(instruction.attribute(r"batch_group_count=(\d+)") or 1)
    for axis in range(len(inputs) - 2):
        label = str(axis)
        field = {name: values[axis] for name, values in window.items()}
        low = int(field.get("pad", "0_0").split("_")[0])
        stride, dilation, spread = (int(field.get(name, 1)) for name in ("stride", "rhs_dilate", "lhs_dilate"))
        reads = (
            np.arange(result[outputs.index(label)])[:, None] * stride
            + np.arange(right[kernel.index(label)]) * dilation
            - low
        )
        extent = (left[inputs.index(label)] - 1) * spread + 1
        products *= int(((reads >= 0) & (reads < extent) & (reads % spread == 0)).sum())
    return 2.0 * products


def _input_gradient_flops(instruction: Instruction, *dims: tuple[int, ...]) -> float:
    """Return the operations of cuDNN's gradient with respect to the input, from (output gradient, kernel, input).

    The attributes of the call describe the forward convolution, so the operations are those of this convolution.
    """
    output, kernel, image = dims
    return convolution_flops(instruction, image, kernel, output)


def _kernel_gradient_flops(instruction: Instruction, *dims: tuple[int, ...]) -> float:
    """Return the operations of cuDNN's gradient with respect to the kernel, from (input, output gradient, kernel)."""
    image, output, kernel = dims
    return convolution_flops(instruction, image, kernel, output)


_Counter = Callable[..., float]

# Calls to NVIDIA's libraries. Unknown calls raise an error, so that their operations are not missed.
_LIBRARY_CALLS: Mapping[str, _Counter | None] = {
    "__cublas$gemm": product_flops,
    "__cublas$lt$matmul": product_flops,
    "__cudnn$convForward": convolution_flops,
    "__cudnn$convBiasActivationForward": convolution_flops,
    "__cudnn$convBackwardInput": _input_gradient_flops,
    "__cudnn$convBackwardFilter": _kernel_gradient_flops,
    "__cudnn$norm": None,
}


def _counter(instruction: Instruction) -> _Counter | None:
    """Return the function that counts the operations of an instruction; None if it is not a product.

    Raises:
      UserError: the instruction calls an unknown function of cuBLAS or cuDNN.
    """
    if instruction.opcode != "custom-call":
        return {"dot": product_flops, "convolution": convolution_flops}.get(instruction.opcode)
    called = instruction.attribute(r'custom_call_target="([^"]*)"')
    if re.match(r"__cu(blas|dnn)\$", called) and called not in _LIBRARY_CALLS:
        raise UserError(f"the compiled step calls {called}; crossearth_jax/aot/hlo.py cannot count its operations")
    return _LIBRARY_CALLS.get(called)
