"""Translate a JAX function into an ONNX graph, one primitive operation after another.

The function is traced to a jaxpr. Inner functions are inlined, and loops (`scan`) are unrolled. Operations on constants
are computed here, so the graph holds only operations that depend on the input. The translation covers the primitives
that the segmentation network uses, on arrays with at most one symbolic dimension: the number of images.

Existing converters are not used, because they follow new versions of JAX with a delay and restrict the versions of its
companion packages. The network needs about fifty primitives, most of which have an ONNX operator of the same meaning.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from onnx import helper, numpy_helper

from crossearth_jax.config import UserError

OPSET = 17  # version of the operator set: the rules below use the operators' form of this version

Shape = tuple[Any, ...]  # of int, or of a symbolic dimension of JAX


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A value of the graph: a constant (`array`), or the output `name` of a node.

    `shape` has 1 where a broadcast of JAX is not yet carried out. ONNX operators for single elements broadcast their
    inputs themselves; the others get `_Graph.whole`.
    """

    shape: Shape
    name: str = ""
    array: np.ndarray | None = None


def build_graph(
    function: Callable[[jax.Array], jax.Array], argument: jax.ShapeDtypeStruct, input_name: str, output_name: str
) -> onnx.GraphProto:
    """Translate a function of one array.

    Args:
      function: of one array, with one array as result; arrays in its closure become constants of the graph.
      argument: shape and type of the argument. The first dimension may be symbolic.
      input_name: name of the argument in the graph.
      output_name: name of the result in the graph.

    Raises:
      UserError: the function uses a primitive that has no rule here.
    """
    closed = jax.make_jaxpr(function)(argument)
    images = Tensor(argument.shape, input_name)
    graph = _Graph(images)
    jaxpr, constants = _opened(closed)
    (result,) = graph.inline(jaxpr, constants, [images])
    (aval,) = (variable.aval for variable in jaxpr.outvars)
    whole = graph.whole(result, aval.shape)
    graph.nodes.append(helper.make_node("Identity", [graph.name_of(whole)], [output_name]))
    nodes = _needed(graph.nodes, output_name)
    used = {name for node in nodes for name in node.input}
    return helper.make_graph(
        nodes,
        "crossearth_jax",
        [_value_info(input_name, argument)],
        [_value_info(output_name, aval)],
        [numpy_helper.from_array(array, name) for name, array in graph.initializers.items() if name in used],
    )


def _value_info(name: str, aval: Any) -> onnx.ValueInfoProto:
    shape = [size if isinstance(size, int) else str(size) for size in aval.shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(aval.dtype)), shape)


def _opened(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """Return a jaxpr without its constants, and the constants; some versions of JAX have two classes for them."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def _needed(nodes: Sequence[onnx.NodeProto], output: str) -> list[onnx.NodeProto]:
    """Return the nodes on which an output depends, in order."""
    needed, kept = {output}, []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]


class _Graph:
    """The nodes and constants so far, and one method per kind of operation."""

    def __init__(self, argument: Tensor):
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, np.ndarray] = {}
        self._input = argument
        self._names: dict[Any, str] = {}  # of constants, by content or identity
        self._outputs: dict[Any, list[str]] = {}  # of nodes, so that an equal node is not added twice

    def inline(self, jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Tensor]) -> list[Tensor]:
        """Add the operations of a jaxpr and return its results."""
        values: dict[Any, Tensor] = {}
        values.update(zip(jaxpr.constvars, map(_constant, constants), strict=True))
        values.update(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Tensor:
            literal = hasattr(atom, "val")
            return _constant(np.asarray(atom.val, atom.aval.dtype)) if literal else values[atom]

        for equation in jaxpr.eqns:
            results = self.apply(equation, [read(atom) for atom in equation.invars])
            values.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def apply(self, equation: Any, inputs: list[Tensor]) -> list[Tensor]:
        """Add one operation and return its results."""
        name, options = equation.primitive.name, equation.params
        inner = options.get("jaxpr", options.get("call_jaxpr"))
        if name == "scan":
            return self._scan(equation, inputs)
        if inner is not None:  # a call of another function
            return self.inline(*_opened(inner), inputs)
        outputs = [variable.aval for variable in equation.outvars]
        known = all(value.array is not None for value in inputs) and name != "dim_as_value"
        if known and all(map(_is_static, outputs)):
            arrays = [
                np.broadcast_to(value.array, atom.aval.shape)  # pyright: ignore[reportArgumentType, reportCallIssue]
                for value, atom in zip(inputs, equation.invars, strict=True)
            ]
            found = equation.primitive.bind(*arrays, **options)
            return [_constant(array) for array in (found if equation.primitive.multiple_results else [found])]
        if name in _ELEMENTWISE:
            return [self._elementwise(_ELEMENTWISE[name], inputs)]
        rule = _RULES.get(name)
        if rule is None:
            raise UserError(
                f"the ONNX export has no rule for JAX's operation '{name}' (jax {jax.__version__}); install the "
                "versions of constraints.txt, or export to a .stablehlo file"
            )
        if name not in _LAZY:
            inputs = [self.whole(x, atom.aval.shape) for x, atom in zip(inputs, equation.invars, strict=True)]
        result = rule(self, inputs, outputs[0], options)
        return result if isinstance(result, list) else [result]

    def _scan(self, equation: Any, inputs: list[Tensor]) -> list[Tensor]:
        """Unroll a loop. Inputs and outputs with a leading axis of iterations have one axis more than in the body."""
        body, constants = _opened(equation.params["jaxpr"])
        stacked = [a.aval.ndim > b.aval.ndim for a, b in zip(equation.invars, body.invars, strict=True)]
        collected = [a.aval.ndim > b.aval.ndim for a, b in zip(equation.outvars, body.outvars, strict=True)]
        fixed = len(inputs) - sum(stacked) - (len(collected) - sum(collected))  # constants come first, then the carry
        carry, rows = inputs[fixed : len(inputs) - sum(stacked)], []
        inputs = [
            self.whole(x, atom.aval.shape) if many else x
            for x, atom, many in zip(inputs, equation.invars, stacked, strict=True)
        ]
        order = range(equation.params["length"])
        for i in reversed(order) if equation.params["reverse"] else order:
            items = [self._item(x, i) for x, many in zip(inputs, stacked, strict=True) if many]
            results = self.inline(body, constants, [*inputs[:fixed], *carry, *items])
            carry = results[: len(carry)]
            rows.append(
                [
                    self.whole(x, v.aval.shape)
                    for x, v in zip(results[len(carry) :], body.outvars[len(carry) :], strict=True)
                ]
            )
        if equation.params["reverse"]:
            rows.reverse()
        return [*carry, *(self._stack(list(column), 0) for column in zip(*rows, strict=True))]

    def _item(self, x: Tensor, i: int) -> Tensor:
        """Return x[i]."""
        if x.array is not None:
            return _constant(x.array[i])
        return self.node("Gather", [x, _constant(np.asarray(i))], x.shape[1:], axis=0)

    def _stack(self, values: list[Tensor], axis: int) -> Tensor:
        shape = list(values[0].shape)
        shape.insert(axis, 1)
        parts = [self.reshape(x, tuple(shape)) for x in values]
        shape[axis] = len(values)
        return self.node("Concat", parts, tuple(shape), axis=axis)

    def _elementwise(self, rule: str | Callable[..., Tensor], inputs: list[Tensor]) -> Tensor:
        if callable(rule):
            return rule(self, *inputs)
        return self.node(rule, inputs, _broadcast(*(x.shape for x in inputs)))

    def node(self, operator: str, inputs: Sequence[Tensor], shape: Shape, **attributes: Any) -> Tensor:
        """Add a node with one output, unless there is an equal node already."""
        return Tensor(shape, self.outputs_of(operator, inputs, 1, **attributes)[0])

    def outputs_of(self, operator: str, inputs: Sequence[Tensor], outputs: int, **attributes: Any) -> list[str]:
        """Add a node, unless there is an equal one already, and return the names of its outputs."""
        names = [self.name_of(x) for x in inputs]
        key = (operator, tuple(names), repr(sorted(attributes.items())))
        if key not in self._outputs:
            self._outputs[key] = [f"{operator}_{len(self._outputs)}_{i}" for i in range(outputs)]
            self.nodes.append(helper.make_node(operator, names, self._outputs[key], **attributes))
        return self._outputs[key]

    def name_of(self, x: Tensor) -> str:
        """Return the name under which nodes refer to a value; a constant is added to the graph at its first use."""
        if x.array is None:
            return x.name
        small = x.array.nbytes <= 1024
        key = (x.array.dtype.str, x.array.shape, x.array.tobytes()) if small else id(x.array)
        if key not in self._names:
            self._names[key] = f"constant_{len(self._names)}"
            self.initializers[self._names[key]] = x.array
        return self._names[key]

    def whole(self, x: Tensor, shape: Shape) -> Tensor:
        """Carry out the broadcast of a value to its shape in JAX."""
        if x.shape == shape:
            return x
        if x.array is not None and all(isinstance(size, int) for size in shape):
            return _constant(np.ascontiguousarray(np.broadcast_to(x.array, shape)))
        extent = self.node("Concat", [self.size(size) for size in shape], (len(shape),), axis=0)
        return self.node("Expand", [x, extent], shape)

    def size(self, dimension: Any) -> Tensor:
        """Return a dimension as an array of one element; a symbolic one is a multiple of the number of images."""
        if isinstance(dimension, int):
            return _constant(np.array([dimension], np.int64))
        images = self._input.shape[0]
        factor = dimension // images
        assert isinstance(factor, int) and factor * images == dimension, f"{dimension} is not a multiple of {images}"
        count = self.node("Shape", [self._input], (1,), start=0, end=1)
        return count if factor == 1 else self.node("Mul", [count, self.size(factor)], (1,))

    def reshape(self, x: Tensor, shape: Shape) -> Tensor:
        """Change the shape of a value; at most one dimension may be symbolic."""
        if x.shape == shape:
            return x
        if x.array is not None and _is_static(x):
            return Tensor(shape, array=x.array.reshape(shape))
        sizes = [size if isinstance(size, int) else -1 for size in shape]
        return self.node("Reshape", [x, _constant(np.array(sizes, np.int64))], shape)

    def transpose(self, x: Tensor, order: Sequence[int]) -> Tensor:
        """Permute the axes of a value."""
        order = [int(axis) for axis in order]
        shape = tuple(x.shape[axis] for axis in order)
        if order == list(range(len(order))):
            return x
        if x.array is not None:
            return Tensor(shape, array=np.ascontiguousarray(x.array.transpose(order)))
        return self.node("Transpose", [x], shape, perm=order)

    def cast(self, x: Tensor, dtype: Any) -> Tensor:
        """Convert the elements of a value to another type."""
        return self.node("Cast", [x], x.shape, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def slice(self, x: Tensor, axes: Sequence[int], starts: Sequence[int], sizes: Sequence[int], step=1) -> Tensor:
        """Cut `sizes` elements (before taking every `step`-th) from `starts` along each of the axes."""
        shape = list(x.shape)
        for axis, size in zip(axes, sizes, strict=True):
            shape[axis] = -(-size // step)
        ends = [start + size for start, size in zip(starts, sizes, strict=True)]
        bounds = [_constant(np.array(numbers, np.int64)) for numbers in (starts, ends, axes, [step] * len(axes))]
        return self.node("Slice", [x, *bounds], tuple(shape))


def _constant(array: Any) -> Tensor:
    array = np.asarray(array)
    return Tensor(array.shape, array=array)


def _is_static(x: Any) -> bool:
    return all(isinstance(size, int) for size in x.shape)


def _broadcast(*shapes: Shape) -> Shape:
    """Return the shape of the result of an operator for single elements; a scalar fits every shape."""
    rank = max(map(len, shapes))
    aligned = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(next((size for size in sizes if size != 1), 1) for sizes in zip(*aligned, strict=True))


# Rules for single elements: the operator of the same meaning, or a function of the graph and the inputs.


def _rsqrt(graph: _Graph, x: Tensor) -> Tensor:
    return graph.node("Reciprocal", [graph.node("Sqrt", [x], x.shape)], x.shape)


def _erfc(graph: _Graph, x: Tensor) -> Tensor:
    return graph.node("Sub", [_constant(np.float32(1)), graph.node("Erf", [x], x.shape)], x.shape)


def _logistic(graph: _Graph, x: Tensor) -> Tensor:
    """Return 1 / (1 + exp(-x)).

    Not "Sigmoid": onnxruntime limits its argument to -18 from below. Where the masks of all queries are fainter, the
    scores are almost 0, and their ratios, the probabilities, would be lost.
    """
    power = graph.node("Exp", [graph.node("Neg", [x], x.shape)], x.shape)
    return graph.node("Reciprocal", [graph.node("Add", [_constant(np.float32(1)), power], x.shape)], x.shape)


def _select(graph: _Graph, which: Tensor, if_false: Tensor, if_true: Tensor) -> Tensor:
    inputs = [which, if_true, if_false]
    return graph.node("Where", inputs, _broadcast(*(x.shape for x in inputs)))


def _clamp(graph: _Graph, low: Tensor, x: Tensor, high: Tensor) -> Tensor:
    return graph.node("Min", [graph.node("Max", [x, low], x.shape), high], x.shape)


def _not_equal(graph: _Graph, x: Tensor, y: Tensor) -> Tensor:
    shape = _broadcast(x.shape, y.shape)
    return graph.node("Not", [graph.node("Equal", [x, y], shape)], shape)


_ELEMENTWISE: dict[str, str | Callable[..., Tensor]] = {
    "abs": "Abs",
    "add": "Add",
    "and": "And",
    "copy": "Identity",
    "div": "Div",
    "eq": "Equal",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "log": "Log",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "not": "Not",
    "or": "Or",
    "sqrt": "Sqrt",
    "sub": "Sub",
    "tanh": "Tanh",
    "clamp": _clamp,
    "erfc": _erfc,
    "logistic": _logistic,
    "ne": _not_equal,
    "rsqrt": _rsqrt,
    "select_n": _select,
    "square": lambda graph, x: graph.node("Mul", [x, x], x.shape),
    "stop_gradient": lambda graph, x: x,
    "name": lambda graph, x: x,  # of a value that the backward pass may keep
}


# Rules for whole arrays: functions of the graph, the inputs, the first output (shape and type) and JAX's options.


def _broadcast_in_dim(graph: _Graph, inputs: list[Tensor], output: Any, options: dict[str, Any]) -> Tensor:
    shape: list[Any] = [1] * len(output.shape)
    for axis, size in zip(options["broadcast_dimensions"], inputs[0].shape, strict=True):
        shape[axis] = size
    return graph.reshape(inputs[0], tuple(shape))


def _concatenate(graph: _Graph, inputs: list[Tensor], output: Any, options: dict[str, Any]) -> Tensor:
    return graph.node("Concat", inputs, output.shape, axis=options["dimension"])


def _unstack(graph: _Graph, inputs: list[Tensor], output: Any, options: dict[str, Any]) -> list[Tensor]:
    axis = options["axis"]
    return [
        graph.node("Gather", [inputs[0], _constant(np.asarray(i))], output.shape, axis=axis)
        for i in range(inputs[0].shape[axis])
    ]


def _split(graph: _Graph, inputs: list[Tensor], output: Any, options: dict[str, Any]) -> list[Tensor]:
    sizes, axis = [int(size) for size in options["sizes"]], int(options["axis"])
    names = graph.outputs_of("Split", [inputs[0], _constant(np.array(sizes, np.int64))], len(sizes), axis=axis)
    shapes = [(*inputs[0].shape[:axis], size, *inputs[0].shape[axis + 1 :]) for size in sizes]
    return [Tensor(shape, name) for shape, name in zip(shapes, names, strict=True)]


def _slice(graph: _Graph, inputs: list[Tensor], output: Any, options: dict[str, Any]) -> Tensor:
    (x,) = inputs
    for axis, (start, end) in enumerate(zip(options["start_indices"], options["limit_indices"], strict=True)):
        step = options["strides"][axis] if options["strides"] else 1
        if (start, end, step) != (0, x.shape[axis], 1):
            x = graph.slice(x, [axis], [start], [end - start], step)
    return x


def _tile(graph: _Graph, inputs: list[Tensor], output: Any, options: dict[str, Any]) -> Tensor:
    return graph.node("Tile", [inputs[0], _constant(np.array(options["reps"], np.int64))], output.shape)


def _reduce_sum(graph: _Graph, inputs: list[Tensor], output: Any, options: dict[str, Any]) -> Tensor:
    """Sum over one axis after another: onnxruntime adds all numbers in a row, which is inexact for many numbers."""
    (x,) = inputs
    for axis in sorted(map(int, options["axes"]), reverse=True):
        shape = (*x.shape[:axis], *x.shape[axis + 1 :])
        x = graph.node("ReduceSum", [x, _constant(np.array([axis], np.int64))], shape, keepdims=0)
    return x


def _reduce_max(graph: _Graph, inputs: list[Tensor], output: Any, options: dict[str, Any]) -> Tensor:
    return graph.node("ReduceMax", inputs, output.shape, axes=[int(axis) for axis in options["axes"]], keepdims=0)


def _reduce_or(graph: _Graph, inputs: list[Tensor], output: Any, options: dict[str, Any]) -> Tensor:
    return graph.cast(_reduce_max(graph, [graph.cast(inputs[0], np.int32)], output, options), bool)


def _dot_general(graph: _Graph, inputs: list[Tensor], output: Any, options: dict[str, Any]) -> Tensor:
    """Multiply matrices: axes of images and heads first, then rows, then columns, several of a kind joined to one."""
    (summed, shared) = options["dimension_numbers"]
    free = [
        [axis for axis in range(len(x.shape)) if axis not in (*sums, *shares)]
        for x, sums, shares in zip(inputs, summed, shared, strict=True)
    ]
    left = graph.transpose(inputs[0], [*shared[0], *free[0], *summed[0]])
    right = graph.transpose(inputs[1], [*shared[1], *summed[1], *free[1]])
    batch = tuple(inputs[0].shape[axis] for axis in shared[0])
    rows, terms = ([inputs[0].shape[axis] for axis in axes] for axes in (free[0], summed[0]))
    columns = [inputs[1].shape[axis] for axis in free[1]]
    # One matrix for all rows needs no joined axes on the left.
    left_rows = rows if not batch and rows else [math.prod(rows)]
    left = graph.reshape(left, (*batch, *left_rows, math.prod(terms)))
    right = graph.reshape(right, (*batch, math.prod(terms), math.prod(columns)))
    product = graph.node("MatMul", [left, right], (*batch, *left_rows, math.prod(columns)))
    return graph.reshape(product, output.shape)


def _convolution(graph: _Graph, inputs: list[Tensor], output: Any, options: dict[str, Any]) -> Tensor:
    """Convolve; ONNX has channels before rows and columns in images and kernels."""
    numbers = options["dimension_numbers"]
    assert set(options["lhs_dilation"]) == {1} and options["batch_group_count"] == 1
    image, kernel = graph.transpose(inputs[0], numbers.lhs_spec), graph.transpose(inputs[1], numbers.rhs_spec)
    shape = tuple(output.shape[axis] for axis in numbers.out_spec)
    starts, ends = zip(*options["padding"], strict=True)
    result = graph.node(
        "Conv",
        [image, kernel],
        shape,
        strides=list(options["window_strides"]),
        dilations=list(options["rhs_dilation"]),
        pads=[*starts, *ends],
        group=options["feature_group_count"],
    )
    return graph.transpose(result, np.argsort(numbers.out_spec).tolist())


def _gather(graph: _Graph, inputs: list[Tensor], output: Any, options: dict[str, Any]) -> Tensor:
    x, index = inputs
    numbers, sizes = options["dimension_numbers"], options["slice_sizes"]
    axes = numbers.start_index_map
    if index.array is not None and index.array.ndim == 1:  # a slice at a fixed place
        starts = index.array.tolist()
        cut = graph.slice(x, axes, starts, [sizes[axis] for axis in axes])
        return graph.reshape(cut, output.shape)
    # One element along one axis for each index: GatherND expects the axes that index and array share first.
    assert tuple(axes) == tuple(numbers.collapsed_slice_dims) and len(axes) == 1
    shared, theirs = list(numbers.operand_batching_dims), list(numbers.start_indices_batching_dims)
    rest = [axis for axis in range(len(x.shape)) if axis not in (*shared, *axes)]
    assert all(sizes[axis] == x.shape[axis] for axis in rest)
    others = [axis for axis in range(len(index.shape) - 1) if axis not in theirs]
    data = graph.transpose(x, [*shared, *axes, *rest])
    places = graph.transpose(graph.cast(index, np.int64), [*theirs, *others, len(index.shape) - 1])
    found_axes = [axis for axis in range(len(output.shape)) if axis not in numbers.offset_dims]
    now = [*(found_axes[axis] for axis in [*theirs, *others]), *numbers.offset_dims]
    shape = tuple(output.shape[axis] for axis in now)
    found = graph.node("GatherND", [data, places], shape, batch_dims=len(shared))
    return graph.transpose(found, np.argsort(now).tolist())


def _dynamic_slice(graph: _Graph, inputs: list[Tensor], output: Any, options: dict[str, Any]) -> Tensor:
    x, *starts = inputs
    axes = [axis for axis, size in enumerate(x.shape) if size != output.shape[axis]]
    return graph.slice(x, axes, [_fixed(starts[axis]) for axis in axes], [output.shape[axis] for axis in axes])


def _dynamic_update_slice(graph: _Graph, inputs: list[Tensor], output: Any, options: dict[str, Any]) -> Tensor:
    x, update, *starts = inputs
    axes = [axis for axis, size in enumerate(x.shape) if size != update.shape[axis]]
    if not axes:  # the whole array is replaced
        return update
    (axis,) = axes
    start, end = _fixed(starts[axis]), _fixed(starts[axis]) + update.shape[axis]
    before = [graph.slice(x, [axis], [0], [start])] if start else []
    after = [graph.slice(x, [axis], [end], [x.shape[axis] - end])] if end < x.shape[axis] else []
    return graph.node("Concat", [*before, update, *after], output.shape, axis=axis)


def _fixed(index: Tensor) -> int:
    """Return an index that is known now, as those of unrolled loops are."""
    assert index.array is not None, "an index depends on the input"
    return int(index.array)


def _dim_as_value(graph: _Graph, inputs: list[Tensor], output: Any, options: dict[str, Any]) -> Tensor:
    return graph.cast(graph.reshape(graph.size(options["dim"]), ()), output.dtype)


def _integer_pow(graph: _Graph, inputs: list[Tensor], output: Any, options: dict[str, Any]) -> Tensor:
    return graph.node("Pow", [inputs[0], _constant(np.float32(options["y"]))], inputs[0].shape)


_LAZY = {"broadcast_in_dim", "convert_element_type", "integer_pow", "transpose"}  # keep broadcasts of their input
_RULES: dict[str, Callable[..., Tensor | list[Tensor]]] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "convert_element_type": lambda graph, inputs, output, options: graph.cast(inputs[0], output.dtype),
    "dim_as_value": _dim_as_value,
    "dot_general": _dot_general,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "integer_pow": _integer_pow,
    "reduce_max": _reduce_max,
    "reduce_or": _reduce_or,
    "reduce_sum": _reduce_sum,
    "reshape": lambda graph, inputs, output, options: graph.reshape(inputs[0], output.shape),
    "slice": _slice,
    "split": _split,
    "squeeze": lambda graph, inputs, output, options: graph.reshape(inputs[0], output.shape),
    "stack": lambda graph, inputs, output, options: graph._stack(inputs, options["axis"]),
    "tile": _tile,
    "transpose": lambda graph, inputs, output, options: graph.transpose(inputs[0], options["permutation"]),
    "unstack": _unstack,
}
