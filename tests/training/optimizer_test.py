"""Schedules, parameter groups and one AdamW step against the reference; the moving average by hand."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossearth_jax.config import OptimizerConfig, UserError
from crossearth_jax.runtime import regex_table
from crossearth_jax.training import optimizer
from crossearth_jax.weights.reference_names import from_reference

GOLDEN = Path(__file__).parent.parent / "golden" / "tiny"


@pytest.mark.parametrize(
    ("key", "config"),
    [
        ("poly_512 (lr 1e-4)", OptimizerConfig()),
        ("linear+poly_1024 (lr 6e-5)", OptimizerConfig(learning_rate=6e-5, warmup_steps=10_000)),
    ],
)
def test_schedule(key, config):
    golden = json.loads((GOLDEN / "lr_schedule.json").read_text())[key]
    found = jax.vmap(optimizer.schedule(config, 40_000))(jnp.array([int(step) for step in golden]))
    np.testing.assert_allclose(found, list(golden.values()), rtol=2e-7)


def test_parameter_groups():
    groups = json.loads((GOLDEN / "optim_groups.json").read_text())["groups"]
    shapes = np.load(GOLDEN / "grads.npz")
    assert {group["lr"] for group in groups.values()} == {1e-4}
    wanted = from_reference({n: np.full(shapes[n].shape, g["weight_decay"], np.float32) for n, g in groups.items()})
    config = OptimizerConfig()
    decays = regex_table.resolve(config.decay, wanted, "weight decay")
    assert set(regex_table.resolve(config.rates, wanted, "learning rate").values()) == {1.0}
    for name, values in wanted.items():
        np.testing.assert_array_equal(values, np.float32(config.weight_decay if decays[name] else 0), err_msg=name)


def test_learnt_queries_do_not_decay():
    names = [f"head/mask_decoder/{name}" for name in ("queries", "level_embed", "query_projection/kernel")]
    decays = regex_table.resolve(OptimizerConfig().decay, names, "weight decay")
    assert list(decays.values()) == [False, False, True]


def test_adamw_step():
    params, gradients, wanted = (
        {name: jnp.asarray(value) for name, value in from_reference(tensors).items()} for tensors in _step_tensors()
    )
    adamw = optimizer.make_optimizer(OptimizerConfig(), 40_000, params)
    updates, _ = jax.jit(adamw.update)(gradients, adamw.init(params), params)
    for name, update in updates.items():
        # The step is 1e-4; the rest is the rounding of parameters of the order of 1.
        np.testing.assert_allclose(params[name] + update, wanted[name], rtol=2e-7, atol=1e-7, err_msg=name)


def _step_tensors():
    gradients, after = dict(np.load(GOLDEN / "grads.npz")), dict(np.load(GOLDEN / "adamw_step1.npz"))
    before = np.load(GOLDEN / "params.npz")
    return {name: before[name] for name in gradients}, gradients, after


def test_left_over_parameter_is_refused():
    with pytest.raises(UserError, match="weight decay table has no pattern for parameter 'head/new'"):
        optimizer.make_optimizer(OptimizerConfig(decay=((r"reins/.*", True),)), 40_000, {"head/new": None})


def test_average_by_hand():
    # The decay of step 0 is (1 + 0) / (10 + 0); late it is the configured one.
    early = optimizer.average(0.99, jnp.int32(0), {"a": jnp.array(1.0)}, {"a": jnp.array(2.0)})
    late = optimizer.average(0.99, jnp.int32(100_000), {"a": jnp.array(1.0)}, {"a": jnp.array(2.0)})
    np.testing.assert_allclose([early["a"], late["a"]], [0.1 + 1.8, 0.99 + 0.02], rtol=1e-6)
