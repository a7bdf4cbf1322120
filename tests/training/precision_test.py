"""Where a training step computes in bfloat16 and where it must not."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from crossearth_jax import parallel
from crossearth_jax.aot.origins import inner_programs
from crossearth_jax.ops import attention, deformable_attention, sampling
from crossearth_jax.training.program import build_program


def equations(program: Any) -> Iterator[Any]:
    """All equations of a program, those of its loops and branches included."""
    for equation in program.eqns:
        yield equation
        for inner in inner_programs(equation.params):
            yield from equations(inner)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_bfloat16_is_kept_away_from_softmax_norms_losses_and_state(tiny_config, monkeypatch, platform):
    for module in (attention, deformable_attention, sampling):
        monkeypatch.setattr(module, "platform", lambda: platform)
    model = dataclasses.replace(tiny_config.model, dtype="bfloat16")
    config = dataclasses.replace(tiny_config, model=model, style=None)
    batch = {"image": jax.ShapeDtypeStruct((16, 64, 64, 3), jnp.uint8)}
    batch["label"] = jax.ShapeDtypeStruct((16, 64, 64), jnp.uint8)
    program = build_program(config, parallel.make_mesh(config.mesh))
    traced = program.step.trace(program.state, program.frozen, batch)
    floating = [
        leaf.dtype.name for leaf in jax.tree.leaves(traced.out_info) if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    assert set(floating) == {"float32"}
    work: Counter[str] = Counter()
    for equation in equations(traced.jaxpr):
        types = {value.aval.dtype.name for value in equation.invars if jnp.issubdtype(value.aval.dtype, jnp.floating)}
        # Softmax, norms, losses and costs of the matching are made of these. GELU may be as coarse as what it is
        # applied to; its derivative has an exponential.
        if equation.primitive.name in ("exp", "exp2", "log", "log1p", "rsqrt", "sqrt", "logistic"):
            gelu = equation.outvars[0].aval.shape[-1:] == (config.model.vit.mlp_width,)
            assert types == {"float32"} or gelu, str(equation)[:300]
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            work[min(types)] += 1
    # The products of backbone and heads, forwards and backwards.
    assert work["bfloat16"] > 100
