"""Find the values of a traced program that are computed from trainable parameters alone.

Their gradients have no batch axis either, so the compiler may sum these gradients over the batch instead of those of
the parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import Jaxpr, Literal


class Origin(NamedTuple):
    """Whether a value depends on trainable parameters, and whether on the batch."""

    trainable: bool
    batch: bool

    def __or__(self, other: Any) -> Origin:
        return Origin(self.trainable or other.trainable, self.batch or other.batch)


NOTHING = Origin(False, False)


def shared_sizes(program: Jaxpr, origins: Any) -> set[int]:
    """Return the numbers of elements of all values that depend on trainable parameters but not on the batch.

    Args:
      program: the traced program.
      origins: its arguments with an `Origin` in place of each array.
    """
    sizes: set[int] = set()
    _follow(program, jax.tree.leaves(origins, is_leaf=lambda x: isinstance(x, Origin)), sizes)
    return sizes


def _follow(program: Any, origins: Sequence[Origin], sizes: set[int]) -> list[Origin]:
    """Add the sizes of the program's shared values to `sizes`; return the origins of its results."""
    known: dict[Any, Origin] = dict(zip(program.invars, origins, strict=True))

    def origin(value: Any) -> Origin:
        return NOTHING if isinstance(value, Literal) else known.get(value, NOTHING)

    for equation in program.eqns:
        results = _results(equation, [origin(value) for value in equation.invars], sizes)
        for value, found in zip(equation.outvars, results, strict=True):
            known[value] = found
            if found == Origin(True, False):
                sizes.add(value.aval.size)
    return [origin(value) for value in program.outvars]


def _results(equation: Any, inputs: list[Origin], sizes: set[int]) -> list[Origin]:
    merged = NOTHING
    for origin in inputs:
        merged |= origin
    if equation.primitive.name == "scan":
        inputs = _settled(equation, inputs)
    results = [merged] * len(equation.outvars)
    # The results of a `while` are carried from one iteration to the next: each may depend on all inputs.
    inner = [] if equation.primitive.name == "while" else list(inner_programs(equation.params))
    for program in inner:
        found = _follow(program, inputs[len(inputs) - len(program.invars) :], sizes)
        results = found if program is inner[0] else [a | b for a, b in zip(results, found, strict=True)]
    return results


def _settled(scan: Any, inputs: list[Origin]) -> list[Origin]:
    """Return the origins of a scan's inputs, with those of the carried values after the last iteration."""
    (program,) = inner_programs(scan.params)
    # Scanned inputs and stacked outputs have one axis less inside the body; the others are carried (or constant).
    stacked = sum(
        outer.aval.ndim > inside.aval.ndim for outer, inside in zip(scan.outvars, program.outvars, strict=True)
    )
    scanned = sum(outer.aval.ndim > inside.aval.ndim for outer, inside in zip(scan.invars, program.invars, strict=True))
    count, end = len(scan.outvars) - stacked, len(inputs) - scanned
    carried, after = inputs[end - count : end], _follow(program, inputs, set())[:count]
    settled = [a | b for a, b in zip(carried, after, strict=True)]
    return inputs if settled == carried else _settled(scan, [*inputs[: end - count], *settled, *inputs[end:]])


def inner_programs(parameters: dict[str, Any]) -> Iterator[Any]:
    """Yield the programs among an equation's parameters: bodies of loops, branches and calls."""
    found = jax.tree.leaves(parameters, is_leaf=lambda x: isinstance(x, Jaxpr))
    yield from (value for value in found if isinstance(value, Jaxpr))
