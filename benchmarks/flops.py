"""Count the floating-point operations of matrix products and convolutions in a traced program."""

from __future__ import annotations

import math
from typing import Any

from crossearth_jax.aot.origins import inner_programs


def count_flops(program: Any) -> int:
    """Return the number of multiplications and additions of all matrix products and convolutions.

    The body of a `scan` counts once per iteration. Other operations (norms, softmax, sampling) are not counted, nor are
    loops of unknown length, such as in the Hungarian algorithm. Of a condition, the most expensive branch counts.

    Args:
      program: a jaxpr, as `jax.make_jaxpr(f)(x)` or `jax.jit(f).trace(x).jaxpr` gives it.
    """
    return sum(_of_equation(equation) for equation in program.eqns)


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, numbers = equation.invars[1].aval.shape, params["dimension_numbers"]
        outputs = kernel[numbers.rhs_spec[0]]
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // outputs
    inner = [count_flops(one) for one in inner_programs(params)]
    if name == "cond":
        return max(inner, default=0)
    if name == "while":
        return 0
    return sum(inner) * (params["length"] if name == "scan" else 1)
