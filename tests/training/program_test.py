"""The compiled training step on eight virtual devices: its collectives and its donated buffers."""

import dataclasses
import re

import jax
import pytest

from crossearth_jax.aot import collectives, hlo
from crossearth_jax.aot.collectives import GRADIENTS, PARAMETERS, SUMS
from crossearth_jax.aot.compile import explained, trace_training
from crossearth_jax.config import MeshConfig
from crossearth_jax.runtime import parallel
from crossearth_jax.training.program import build_program


def compiled(config):
    mesh = parallel.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        traced = trace_training(config, mesh)
        return traced.step.lower().compile().as_text(), mesh, traced


@pytest.fixture(scope="module")
def data_parallel(tiny_config):
    return compiled(tiny_config)


@pytest.fixture(scope="module")
def fully_sharded(tiny_config):
    return compiled(dataclasses.replace(tiny_config, mesh=MeshConfig(data=2, fsdp=4)))


def collectives_of(step, config, monkeypatch):
    """Return the collectives of a step of small arrays; the limit `SMALL` is set below the size of any activation."""
    text, mesh, traced = step
    monkeypatch.setattr(collectives, "SMALL", 32)
    found = explained(hlo.parse(text), config, mesh, traced)
    assert [str(collective) for collective in found if not collective.reason] == []
    return found


def test_data_parallel_step_sums_gradients_and_losses_and_moves_nothing_else(data_parallel, tiny_config, monkeypatch):
    found = collectives_of(data_parallel, tiny_config, monkeypatch)
    # In particular there is no all-gather: the frozen backbone is replicated.
    assert {(collective.kind, collective.axes) for collective in found} == {("all-reduce", ("data",))}
    assert {collective.reason for collective in found} == {GRADIENTS, SUMS}


def test_sharded_step_gathers_parameters_and_sums_their_gradients(fully_sharded, tiny_config, monkeypatch):
    found = collectives_of(fully_sharded, tiny_config, monkeypatch)
    assert {GRADIENTS, SUMS, PARAMETERS} <= {collective.reason for collective in found}
    assert {collective.axes for collective in found if collective.kind == "all-gather"} == {("fsdp",)}
    # The layers of a scan are gathered one at a time: a backbone kernel is never gathered for all layers.
    vit = tiny_config.model.vit
    layer, stack = ((*depth, vit.width, 3 * vit.width) for depth in ((), (vit.depth,)))
    gathered = {s.dims: c.times for c in found if c.kind == "all-gather" for s in c.arrays}
    assert gathered[layer] == vit.depth * tiny_config.optimizer.accumulate
    assert stack not in gathered


@pytest.mark.parametrize("step", ["data_parallel", "fully_sharded"])
def test_state_comes_back_in_the_buffers_it_was_passed_in(step, tiny_config, request):
    text, mesh, _ = request.getfixturevalue(step)
    with jax.set_mesh(mesh):
        leaves = len(jax.tree.leaves(build_program(tiny_config, mesh).state))
    header = text.splitlines()[0]
    aliased = re.findall(r"\{(\d+)\}: \((\d+), \{\}", header[header.index("input_output_alias") :])
    assert [(int(output), int(argument)) for output, argument in aliased] == [(i, i) for i in range(leaves)]
