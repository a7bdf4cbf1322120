"""Groups of devices in every notation of HLO, and the collectives that the sharding tables explain."""

import jax
import jax.numpy as jnp
import pytest

from crossearth_jax.aot import collectives, hlo
from crossearth_jax.aot.collectives import ACTIVATIONS, GRADIENTS, PARAMETERS, REDUCED, SUMS, UNEXPLAINED
from crossearth_jax.config import MeshConfig, UserError
from crossearth_jax.runtime import parallel

QKV, CLASS_HEAD = "backbone/blocks/attention/qkv/kernel", "head/mask_decoder/class_head/kernel"
SHAPES = {
    QKV: jax.ShapeDtypeStruct((3, 256, 768), jnp.float32),
    CLASS_HEAD: jax.ShapeDtypeStruct((5000, 7), jnp.float32),
}
AXES = {QKV: ("layers", "embed", "heads"), CLASS_HEAD: ()}


def instruction(attributes: str) -> hlo.Instruction:
    return hlo.Instruction("x", "all-reduce", (), (), attributes)


@pytest.mark.parametrize(
    ("attributes", "groups"),
    [
        ("replica_groups={{0,2},{4,6},{1,3},{5,7}}", {(0, 2), (4, 6), (1, 3), (5, 7)}),
        ("replica_groups=[4,2]<=[8]", {(0, 1), (2, 3), (4, 5), (6, 7)}),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", {(0, 2, 4, 6), (1, 3, 5, 7)}),
        ("replica_groups=mesh['data'=2,'fsdp'=2,'model'=2] {'data','model'}", {(0, 1, 4, 5), (2, 3, 6, 7)}),
        ("source_target_pairs={{0,4},{4,0},{1,1}}, x", {(0, 4), (4, 0)}),
        ("channel_id=1", {tuple(range(8))}),
    ],
)
def test_groups_are_read_in_every_notation(attributes, groups):
    assert {tuple(sorted(group)) for group in collectives.device_groups(instruction(attributes), 8)} == {
        tuple(sorted(group)) for group in groups
    }


def test_groups_span_mesh_axes():
    mesh = parallel.make_mesh(MeshConfig(data=2, fsdp=2, model=2))
    assert collectives.mesh_axes([(0, 1)], mesh) == ("model",)
    assert collectives.mesh_axes([(0, 2), (1, 3)], mesh) == ("fsdp",)
    assert collectives.mesh_axes([(0, 2, 4, 6)], mesh) == ("data", "fsdp")
    assert collectives.mesh_axes([(0,)], mesh) == ()


def explained(kind: str, axes: tuple[str, ...], *dims: int, dtype: str = "f32") -> str:
    mesh = parallel.make_mesh(MeshConfig(data=2, fsdp=2, model=2))
    found = collectives.Collective(kind, axes, 2, (hlo.Shape(dtype, dims, False),), 1.0, "")
    shardings = parallel.param_shardings(mesh, SHAPES, AXES)
    return collectives.explain([found], shardings, SHAPES, [CLASS_HEAD, QKV])[0].reason


@pytest.mark.parametrize(
    ("kind", "axes", "dims", "reason"),
    [
        ("all-reduce", ("data", "fsdp"), (5000, 7), GRADIENTS),
        ("all-reduce", ("data",), (3, 128, 384), GRADIENTS),
        ("all-reduce", ("data", "fsdp", "model"), (), SUMS),
        ("all-gather", ("fsdp",), (1, 256, 384), PARAMETERS),  # one layer of the scan
        ("all-gather", ("fsdp",), (3, 256, 384), PARAMETERS),
        ("reduce-scatter", ("fsdp",), (128, 384), REDUCED),
        ("all-reduce", ("model",), (2, 1025, 1024), ACTIVATIONS),
        # No entry of the tables explains a gather over data, moving images between devices or a sum of activations.
        ("all-gather", ("data",), (3, 256, 384), UNEXPLAINED),
        ("all-to-all", ("data", "fsdp"), (2, 512, 512, 3), UNEXPLAINED),
        ("collective-permute", ("data",), (2, 512, 512, 3), UNEXPLAINED),
        ("all-reduce", ("data", "fsdp"), (2, 1025, 1024), UNEXPLAINED),
        ("all-gather", ("fsdp",), (4, 1025, 1024), UNEXPLAINED),
        ("all-gather", ("fsdp", "model"), (3, 256, 768), UNEXPLAINED),
    ],
)
def test_tables_explain_what_they_cause_and_nothing_else(kind, axes, dims, reason):
    assert explained(kind, axes, *dims) == reason


def test_gradients_of_what_is_computed_from_parameters_are_explained_by_its_size():
    mesh = parallel.make_mesh(MeshConfig())
    tokens = collectives.Collective("all-reduce", ("data",), 8, (hlo.Shape("bf16", (100, 1024), False),), 24.0, "")
    arguments = parallel.param_shardings(mesh, SHAPES, AXES), SHAPES, [CLASS_HEAD]
    assert collectives.explain([tokens], *arguments)[0].reason == UNEXPLAINED
    assert collectives.explain([tokens], *arguments, {100 * 1024})[0].reason == GRADIENTS


def test_bytes_sent_follow_the_ring_algorithms():
    def sent(kind: str, group: int) -> float:
        return collectives.Collective(kind, ("data",), group, (hlo.Shape("f32", (100,), False),), 3.0, "").bytes

    # 400 bytes of result, three times, between four devices.
    assert sent("all-reduce", 4) == 3 * 400 * 2 * 3 / 4
    assert sent("all-gather", 4) == 3 * 400 * 3 / 4
    assert sent("reduce-scatter", 4) == 3 * 400 * 3
    assert sent("collective-permute", 4) == 3 * 400


HANDLER = (
    'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
    '_xla_megascale_transfer_type="ALL_REDUCE"}'
)
# A sum over the batch of two slices, as the TPU compiler writes it in the program of one of them.
TWO_SLICES = """
ENTRY %main (p: f32[5000,7]) -> f32[5000,7] {
  %p = f32[5000,7]{1,0} parameter(0)
  %id = s32[] partition-id()
  %token = token[] after-all()
  %sum = f32[5000,7]{1,0} all-reduce(%p), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  %share = f32[1250,7]{1,0} fusion(%sum, %id), kind=kLoop, calls=%slice
  %moved = f32[1250,7]{1,0} copy(%share)
  %padded = f32[1250,128]{1,0} custom-call(%moved), custom_call_target="ZeroCrop"
  %shaped = f32[1250,1,128]{2,1,0} bitcast(%padded)
  %out = (f32[1250,1,128], u32[], token[]) send(%shaped, %token), channel_id=2, is_host_transfer=true, HANDLER
  %in = (f32[1250,1,128], u32[], token[]) recv(%token), channel_id=3, is_host_transfer=true, HANDLER
  %done = (f32[1250,1,128], token[]) recv-done(%in), channel_id=3, is_host_transfer=true, HANDLER
  %received = f32[1250,1,128]{2,1,0} get-tuple-element(%done), index=0
  %flat = f32[1250,128]{1,0} bitcast(%received)
  %cropped = f32[1250,7]{1,0} slice(%flat), slice={[0:1250], [0:7]}
  ROOT %whole = f32[5000,7]{1,0} all-gather(%cropped), channel_id=4, replica_groups={{0,1,2,3}}, dimensions={0}
}
""".replace("HANDLER", HANDLER)


# Small gradients are concatenated and padded for one sum, sent whole; of a large one each device sends its part.
JOINED = """
ENTRY %main (a: f32[5000,7], b: f32[7], c: f32[5000,7]) -> f32[1250,7] {
  %a = f32[5000,7]{1,0} parameter(0)
  %b = f32[7]{0} parameter(1)
  %c = f32[5000,7]{1,0} parameter(2)
  %token = token[] after-all()
  %flat = f32[35000]{0} reshape(%a)
  %joined = f32[35007]{0} concatenate(%flat, %b), dimensions={0}
  %start = (f32[35007]{0}, f32[35007]{0}, u32[]) copy-start(%joined)
  %moved = f32[35007]{0} copy-done(%start)
  %padded = f32[35840]{0} custom-call(%moved), custom_call_target="ZeroCrop"
  %shaped = f32[35,8,128]{2,1,0} bitcast(%padded)
  %sum = (f32[7]{0}, f32[35,8,128]{2,1,0}) all-reduce(%b, %shaped), channel_id=1, replica_groups={{0,1,2,3}}
  %small = f32[35,8,128]{2,1,0} get-tuple-element(%sum), index=1
  %out = (f32[35,8,128], u32[], token[]) send(%small, %token), channel_id=2, is_host_transfer=true, HANDLER
  ROOT %part = f32[1250,7]{1,0} reduce-scatter(%c), channel_id=3, replica_groups={{0,1,2,3}}, dimensions={0}
}
""".replace("HANDLER", HANDLER)


def two_slices(monkeypatch, text: str, trainable: list[str]) -> list[collectives.Collective]:
    monkeypatch.setattr(collectives, "slice_count", lambda devices: 2)
    mesh = parallel.make_mesh(MeshConfig())
    found = collectives.find(hlo.parse(text), mesh)
    return collectives.explain(found, parallel.param_shardings(mesh, SHAPES, AXES), SHAPES, trainable)


def test_sums_between_slices_have_three_stages(monkeypatch):
    stages = two_slices(monkeypatch, TWO_SLICES, [CLASS_HEAD])
    assert [(stage.kind, stage.axes, stage.group, stage.reason) for stage in stages] == [
        ("all-reduce", ("data",), 4, GRADIENTS),
        (collectives.BETWEEN_SLICES, ("data",), 2, GRADIENTS),
        ("all-gather", ("data",), 4, GRADIENTS),
    ]
    # A quarter of the sum is sent between slices, padded from 7 to 128 columns.
    assert stages[1].bytes == pytest.approx(1250 * 128 * 4)


def test_joined_gradients_are_told_apart_between_slices(monkeypatch):
    stages = two_slices(monkeypatch, JOINED, [CLASS_HEAD])
    assert [(stage.kind, [shape.size for shape in stage.arrays], stage.reason) for stage in stages] == [
        ("all-reduce", [7, 35000, 7], GRADIENTS),
        (collectives.BETWEEN_SLICES, [35000, 7], GRADIENTS),
        ("reduce-scatter", [1250 * 7], GRADIENTS),
    ]
    assert stages[1].bytes == pytest.approx(35840 * 4)  # between two slices, with the padding


# The same sum, with the arrays written into a buffer one after the other, each in a fusion of its own.
WRITTEN = """
%first (x: f32[35000]) -> f32[35007] {
  %x = f32[35000]{0} parameter(0)
  %buffer = f32[35007]{0} custom-call(), custom_call_target="AllocateBuffer"
  %zero = s32[] constant(0)
  ROOT %written = f32[35007]{0} dynamic-update-slice(%buffer, %x, %zero)
}

%second (buffer.1: f32[35007], y: f32[7]) -> f32[35007] {
  %buffer.1 = f32[35007]{0} parameter(0)
  %y = f32[7]{0} parameter(1)
  %place = s32[] constant(35000)
  ROOT %written.1 = f32[35007]{0} dynamic-update-slice(%buffer.1, %y, %place)
}
""" + JOINED.replace(
    "%joined = f32[35007]{0} concatenate(%flat, %b), dimensions={0}",
    """%one = f32[35007]{0} fusion(%flat), kind=kLoop, calls=%first
  %joined = f32[35007]{0} fusion(%one, %b), kind=kLoop, calls=%second""",
)


def test_gradients_written_into_a_buffer_by_fusions_are_told_apart(monkeypatch):
    stages = two_slices(monkeypatch, WRITTEN, [CLASS_HEAD])
    assert [shape.size for shape in stages[1].arrays] == [35000, 7] and stages[1].reason == GRADIENTS


def test_partial_sums_of_a_bias_between_slices_are_explained_by_its_length():
    shapes = {"kernel": jax.ShapeDtypeStruct((256, 1000), jnp.float32)}
    mesh = parallel.make_mesh(MeshConfig())
    sizes = collectives.ParameterSizes(parallel.param_shardings(mesh, shapes, {"kernel": ()}), shapes, {"kernel"})
    assert sizes.summed(256_000, sliced=False) and sizes.summed(4096, sliced=False)
    assert sizes.summed(7000, sliced=True) and not sizes.summed(7000, sliced=False)
    assert not sizes.summed(7001, sliced=True) and not sizes.summed(33_000, sliced=True)


def test_activations_between_slices_are_not_explained(monkeypatch):
    stages = two_slices(monkeypatch, TWO_SLICES, [QKV])
    assert [stage.reason for stage in stages] == [UNEXPLAINED] * 3


def test_other_collectives_between_slices_are_refused(monkeypatch):
    with pytest.raises(UserError, match="found ALL_GATHER between slices"):
        two_slices(monkeypatch, TWO_SLICES.replace("ALL_REDUCE", "ALL_GATHER"), [CLASS_HEAD])
