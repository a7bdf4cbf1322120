"""Application of the rules for names and layouts (`models.torch_names`), in both directions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from crossearth_jax.config import UserError
from crossearth_jax.models.torch_names import Rule
from crossearth_jax.runtime.progress import Progress

Tensors = dict[str, np.ndarray]


def layers(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the layer numbers for which `names` contains `pattern`, ascending.

    For a pattern without "{i}": [""] if `names` contains it, else [].
    """
    if "{i}" not in pattern:
        return [""] if pattern in names else []
    expression = re.compile(re.escape(pattern).replace(r"\{i\}", r"(\d{1,4})"))
    return sorted((match[1] for name in names if (match := expression.fullmatch(name))), key=int)


def to_ours(rules: Iterable[Rule], tensors: Mapping[str, np.ndarray]) -> tuple[Tensors, set[str]]:
    """Convert the reference's tensors into our parameters by `rules`.

    Returns:
      Our parameters as float32 copies, and the names of the tensors that were used.

    Raises:
      UserError: a tensor has an impossible shape, or one layer of a stack is missing.
    """
    params: Tensors = {}
    used: set[str] = set()
    found = [(one, numbers) for one in rules if (numbers := layers(one.reference, tensors))]
    progress = Progress(sum(len(numbers) for _, numbers in found), "tensors")
    for one, numbers in found:
        names = [one.reference.replace("{i}", i) for i in numbers]
        used.update(names)
        if one.stacked:
            if numbers != [str(i) for i in range(len(numbers))]:
                raise UserError(f"{one.reference} has layers {', '.join(numbers)}; expected 0, 1, 2, … without a gap")
            params[one.ours[0]] = _stack(names, [one.split(name, tensors[name])[0] for name in names])
        else:
            for i, name in zip(numbers, names, strict=True):
                for ours, part in zip(one.ours, one.split(name, tensors[name]), strict=True):
                    params[ours.replace("{i}", i)] = np.array(part, np.float32, order="C")
        progress.advance(len(names))
    return params, used


def to_reference(rules: Iterable[Rule], params: Mapping[str, np.ndarray]) -> tuple[Tensors, set[str]]:
    """Invert `to_ours`: return the reference's tensors (mostly views), and the names of our parameters that were used.

    Raises:
      UserError: part of a packed tensor is missing.
    """
    tensors: Tensors = {}
    used: set[str] = set()
    for one in rules:
        for i in layers(one.ours[0], params):
            names = [name.replace("{i}", i) for name in one.ours]
            if missing := [name for name in names if name not in params]:
                raise UserError(f"parameter {missing[0]} is missing beside {names[0]}")
            used.update(names)
            parts = [np.asarray(params[name]) for name in names]
            if one.stacked:
                for layer, part in enumerate(parts[0]):
                    tensors[one.reference.replace("{i}", str(layer))] = one.layout.to_reference(part)
            else:
                parts = [one.layout.to_reference(part) for part in parts]
                tensors[one.reference.replace("{i}", i)] = np.concatenate(parts) if len(parts) > 1 else parts[0]
    return tensors, used


def _stack(names: Sequence[str], arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Stack arrays directly into one float32 array, because a stack of layers of a large model needs much memory."""
    for name, array in zip(names, arrays, strict=True):
        if array.shape != arrays[0].shape:
            raise UserError(f"{name} has another shape than {names[0]}; expected layers of equal shapes")
    stacked = np.empty((len(arrays), *arrays[0].shape), np.float32)
    for i, array in enumerate(arrays):
        stacked[i] = array
    return stacked
