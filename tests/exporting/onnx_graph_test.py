"""Translated functions give the same numbers under onnxruntime as in JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from crossearth_jax.config import UserError
from crossearth_jax.exporting.onnx_graph import OPSET, build_graph

KERNEL = np.random.default_rng(0).standard_normal((3, 3, 2, 4)).astype(np.float32)
INDEX = np.array([4, 0, 2])


def run(function, x):
    """Translate a function with a symbolic number of rows and run it."""
    (rows,) = jax.export.symbolic_shape("b")
    graph = build_graph(function, jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), "x", "y")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: jax.nn.softmax(x) + jax.nn.gelu(x, approximate=False), (2, 5)),
        (lambda x: jnp.where(x > 0, jnp.sqrt(jnp.abs(x)), x**3) - jnp.clip(x, -0.5, 0.5), (2, 5)),
        (lambda x: jax.nn.standardize(x, axis=-1) * jax.nn.silu(x) + jnp.tanh(x) / jnp.log(2 + x * x), (2, 5)),
        (lambda x: (x[:, 1:4:2] > x.mean()).any(axis=-1).astype(jnp.float32), (3, 5)),
        (lambda x: jnp.concatenate([x, 2 * x], axis=1)[:, 3:7].T.reshape(4, -1), (2, 5)),
        (lambda x: jnp.stack(jnp.split(x, 3, axis=1)).sum(axis=(0, 2)), (2, 6)),
        (lambda x: jnp.tile(x, (1, 2)) + jnp.arange(6.0), (2, 3)),
        (lambda x: jnp.einsum("bqd,bhwd->bhqw", x, x[:, None] + jnp.ones((1, 4, 5, 3))), (2, 5, 3)),
        (lambda x: jnp.einsum("bij,ijk->bk", x, KERNEL[:, 0]), (2, 3, 2)),
        (lambda x: jnp.einsum("bij,nj->bni", x, KERNEL[0, 0].T), (2, 3, 2)),
        (
            lambda x: jax.lax.conv_general_dilated(
                x, KERNEL, (2, 1), ((1, 0), (2, 2)), rhs_dilation=(1, 2), dimension_numbers=("NHWC", "HWIO", "NHWC")
            ),
            (2, 7, 6, 2),
        ),
        (lambda x: jnp.take_along_axis(x, jnp.broadcast_to(INDEX[:, None], (x.shape[0], 3, 2)), axis=1), (2, 5, 2)),
        (
            lambda x: jax.lax.scan(lambda c, row: (c + row, c * row), jnp.zeros((x.shape[0], 2)), x.swapaxes(0, 1))[1],
            (2, 3, 2),
        ),
        (lambda x: jax.lax.scan(lambda c, row: (c * row + 1, c), x[:, 0], KERNEL[0, 0, 0], reverse=True)[0], (3, 2)),
        (lambda x: jax.lax.dynamic_update_index_in_dim(x, jnp.ones((x.shape[0], 2)), 1, 1), (2, 3, 2)),
    ],
)
def test_numbers_are_those_of_jax(function, shape):
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    found, expected = run(function, x), np.asarray(function(jnp.asarray(x)))
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_logistic_function_keeps_the_ratios_of_small_values():
    """The operator "Sigmoid" of onnxruntime has 1.5e-8 for all values below -18."""
    x = np.array([[-80.0, -40.0, -20.0], [-1.0, 0.0, 90.0]], np.float32)
    np.testing.assert_allclose(run(jax.nn.sigmoid, x), 1 / (1 + np.exp(-x.astype(np.float64))), rtol=1e-5)


def test_only_operations_on_the_input_are_in_the_graph():
    """The table is computed while the graph is built; the node counts of the loop are those of its iterations."""
    table = jnp.arange(12.0).reshape(3, 4)

    def function(x):
        x, _ = jax.lax.scan(lambda x, row: (x + jnp.cos(row).sum(), None), x, table)
        return x

    graph = build_graph(function, jax.ShapeDtypeStruct((2, 4), jnp.float32), "x", "y")
    assert [node.op_type for node in graph.node] == ["Add", "Add", "Add", "Identity"]
    assert len(graph.initializer) == 3


def test_an_operation_without_a_rule_is_named():
    with pytest.raises(UserError, match="no rule for JAX's operation 'sort'"):
        build_graph(jnp.sort, jax.ShapeDtypeStruct((2, 4), jnp.float32), "x", "y")


def test_sums_of_many_numbers_are_exact():
    """As in a group norm of a large image. Added in a row, these numbers would be wrong by 6e-6."""
    x = 1 + np.random.default_rng(0).random((1, 128, 128, 4, 8), np.float32)
    expected = x.astype(np.float64).sum((1, 2, 4))
    np.testing.assert_allclose(run(lambda x: x.sum((1, 2, 4)), x), expected, rtol=2e-6)
