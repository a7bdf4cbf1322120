"""How the reference names and lays out a parameter: the form of the tables `TORCH_NAMES` beside the modules.

A rule says under which name the reference keeps a parameter, under which we do, and how to turn one array into the
other. "{i}" stands for a layer number; where only the reference's name has it, we stack the layers on a leading axis.
A rule with several of our names splits one tensor into that many parts along its first axis.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from crossearth_jax.config import UserError


@dataclasses.dataclass(frozen=True)
class Layout:
    """A change of memory layout and its inverse."""

    axes: Sequence[int]  # how many the other's tensor may have
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
    """One kind of parameter in both worlds."""

    reference: str
    ours: tuple[str, ...]
    layout: Layout

    @property
    def stacked(self) -> bool:
        """Whether our parameter holds all the layers."""
        return "{i}" in self.reference and "{i}" not in self.ours[0]

    def split(self, name: str, tensor: np.ndarray) -> list[np.ndarray]:
        """Our parts of the tensor `name`.

        Raises:
          UserError: its shape or type is not what the rule expects.
        """
        parts = len(self.ours)
        if tensor.ndim not in self.layout.axes or (parts > 1 and (tensor.ndim == 0 or len(tensor) % parts)):
            raise UserError(f"{name} has shape {tensor.shape}, which no {self.ours[0]} of CrossEarth can have")
        if tensor.dtype.kind in "iub?":
            raise UserError(f"{name} holds {tensor.dtype} numbers, expected floating point")
        return [self.layout.to_ours(part) for part in (np.split(tensor, parts) if parts > 1 else [tensor])]


def rule(reference: str, ours: str | tuple[str, ...], layout: Layout) -> Rule:
    """A rule; one name of ours needs no tuple."""
    return Rule(reference, (ours,) if isinstance(ours, str) else ours, layout)


def affine(reference: str, ours: str, kernel: Layout | None = None) -> list[Rule]:
    """Weight and bias of a linear layer or convolution; of a norm where no kernel layout is given."""
    name = "kernel" if kernel else "scale"
    return [
        rule(f"{reference}.weight", f"{ours}/{name}", kernel or SAME),
        rule(f"{reference}.bias", f"{ours}/bias", SAME),
    ]
