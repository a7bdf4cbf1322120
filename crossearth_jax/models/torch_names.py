"""Rules for the names and memory layouts of the reference's parameters: the rows of the `TORCH_NAMES` tables.

A rule gives the name of a parameter in the reference, its name here, and the conversion between the two arrays. "{i}"
stands for a layer number. If only the reference's name has it, the layers are stacked on a leading axis here. A rule
with several names of ours splits one tensor into that many equal parts along its first axis.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from crossearth_jax.config import UserError


@dataclasses.dataclass(frozen=True)
class Layout:
    """A change of memory layout and its inverse."""

    axes: Sequence[int]  # numbers of axes that the reference's tensor may have
    to_ours: Callable[[np.ndarray], np.ndarray]
    to_reference: Callable[[np.ndarray], np.ndarray]


SAME = Layout(range(33), lambda x: x, lambda x: x)
LINEAR = Layout((2,), np.transpose, np.transpose)  # (out, in) -> (in, out)
CONV = Layout((4,), lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # OIHW -> HWIO
TOKEN = Layout((3,), lambda x: x[0, 0], lambda x: x[None, None])  # (1, 1, c) -> (c,)
TABLE = Layout((3,), lambda x: x[0], lambda x: x[None])  # (1, n, c) -> (n, c)
PIXELS = Layout((4,), lambda x: x[0].transpose(1, 2, 0), lambda x: x.transpose(2, 0, 1)[None])  # 1CHW -> HWC


@dataclasses.dataclass(frozen=True)
class Rule:
    """One kind of parameter: its name in the reference, its name or names here, and its layout."""

    reference: str
    ours: tuple[str, ...]
    layout: Layout

    @property
    def stacked(self) -> bool:
        """Return whether our parameter holds all layers on a leading axis."""
        return "{i}" in self.reference and "{i}" not in self.ours[0]

    def split(self, name: str, tensor: np.ndarray) -> list[np.ndarray]:
        """Convert the reference's tensor `name` into our arrays, one per name of ours.

        Raises:
          UserError: its shape or type is not what the rule expects.
        """
        parts = len(self.ours)
        if tensor.ndim not in self.layout.axes or (parts > 1 and (tensor.ndim == 0 or len(tensor) % parts)):
            raise UserError(f"{name} has shape {tensor.shape}, which is impossible for {self.ours[0]} of CrossEarth")
        if tensor.dtype.kind in "iub?":
            raise UserError(f"{name} holds {tensor.dtype} numbers, expected floating point")
        return [self.layout.to_ours(part) for part in (np.split(tensor, parts) if parts > 1 else [tensor])]


def rule(reference: str, ours: str | tuple[str, ...], layout: Layout) -> Rule:
    """Create a rule; a single name of ours may be given without a tuple."""
    return Rule(reference, (ours,) if isinstance(ours, str) else ours, layout)


def affine(reference: str, ours: str, kernel: Layout | None = None) -> list[Rule]:
    """Create the rules of weight and bias of a linear layer or convolution, or of a norm if `kernel` is None."""
    name = "kernel" if kernel else "scale"
    return [
        rule(f"{reference}.weight", f"{ours}/{name}", kernel or SAME),
        rule(f"{reference}.bias", f"{ours}/bias", SAME),
    ]
