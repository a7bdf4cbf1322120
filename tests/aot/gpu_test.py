"""Products and collectives in programs of the GPU compiler.

The lines are shortened output of the compiler (jax-cuda12-plugin 0.12.0.1) for several programs.
"""

import importlib.util
import textwrap

import pytest

from crossearth_jax.aot import collectives, hlo
from crossearth_jax.aot.chips import CHIPS, chip_of, slice_devices
from crossearth_jax.aot.compilers import CUDA
from crossearth_jax.aot.gpus import target_config
from crossearth_jax.config import MeshConfig, UserError
from crossearth_jax.runtime import parallel

STEP = textwrap.dedent("""
    HloModule jit_step, is_scheduled=true, num_partitions=8

    %fused_computation.gemm_fusion_dot.10_computation (param_0: bf16[128,8,64], param_1: bf16[8,64,512]) -> f32[8,128,512] {
      %param_0 = bf16[128,8,64]{2,1,0} parameter(0)
      %param_1 = bf16[8,64,512]{2,1,0} parameter(1)
      ROOT %dot.13 = f32[8,128,512]{2,1,0} dot(%param_0, %param_1), lhs_batch_dims={1}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}, backend_config={"sizes":["16"]}
    }

    %region_6.7_spmd (param.2: (s32[], bf16[128,8,64], bf16[8,64,512])) -> (s32[], bf16[128,8,64], bf16[8,64,512]) {
      %param.2 = (s32[], bf16[128,8,64]{2,1,0}, bf16[8,64,512]{2,1,0}) parameter(0)
      %bitcast.33.0 = bf16[128,8,64]{2,1,0} get-tuple-element(%param.2), index=1
      %bitcast.34.0 = bf16[8,64,512]{2,1,0} get-tuple-element(%param.2), index=2
      %gemm_fusion_dot.10 = f32[8,128,512]{2,1,0} fusion(%bitcast.33.0, %bitcast.34.0), kind=kCustom, calls=%fused_computation.gemm_fusion_dot.10_computation, backend_config={"operation_queue_id":"0","fusion_backend_config":{"kind":"__triton_nested_gemm_fusion"}}
      %all-reduce.16 = f32[8,128,512]{2,1,0} all-reduce(%gemm_fusion_dot.10), channel_id=1, replica_groups=mesh['axis_0'=8] {'axis_0'}, use_global_device_ids=true, to_apply=%add.clone, backend_config={"collective_backend_config":{"is_sync":true}}
      ROOT %tuple.1 = (s32[], bf16[128,8,64]{2,1,0}, bf16[8,64,512]{2,1,0}) tuple(%param.2, %bitcast.33.0, %bitcast.34.0)
    }

    %wrapped_concatenate_computation.1 (param_0.176: bf16[36864], param_1.211: bf16[131072]) -> bf16[167936] {
      %param_0.176 = bf16[36864]{0} parameter(0)
      %param_1.211 = bf16[131072]{0} parameter(1)
      ROOT %concatenate.3 = bf16[167936]{0} concatenate(%param_0.176, %param_1.211), dimensions={0}
    }

    ENTRY %main.12_spmd (param.9: bf16[1,33,33,64], param.8: bf16[64,3,3,64], param.7: bf16[16,12], param.6: bf16[16,16]) -> bf16[167936] {
      %loop_pad_fusion = bf16[1,33,33,64]{3,2,1,0} parameter(0)
      %wrapped_transpose = bf16[64,3,3,64]{3,2,1,0} parameter(1)
      %wrapped_slice.27 = bf16[16,12]{1,0} parameter(2)
      %gemm_fusion_dot.519 = bf16[16,16]{1,0} parameter(3)
      %cudnn-conv.2 = (bf16[1,16,16,64]{3,2,1,0}, u8[0]{0}) custom-call(%loop_pad_fusion, %wrapped_transpose), window={size=3x3 stride=2x2}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
      %get-tuple-element.74 = bf16[1,16,16,64]{3,2,1,0} get-tuple-element(%cudnn-conv.2), index=0
      %cudnn-conv-bw-filter.2 = (bf16[64,3,3,64]{3,2,1,0}, u8[0]{0}) custom-call(%loop_pad_fusion, %get-tuple-element.74), window={size=3x3 stride=2x2}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
      %cudnn-conv-bw-input.8 = (bf16[1,33,33,64]{3,2,1,0}, u8[0]{0}) custom-call(%get-tuple-element.74, %wrapped_transpose), window={size=3x3 stride=2x2}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput"
      %custom-call.383 = (bf16[16,16]{1,0}, s8[4194304]{0}) custom-call(%gemm_fusion_dot.519, %gemm_fusion_dot.519), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]}}}
      %while.22 = (s32[], bf16[128,8,64]{2,1,0}, bf16[8,64,512]{2,1,0}) while(%tuple.19), condition=%region_4.5_spmd, body=%region_6.7_spmd, backend_config={"known_trip_count":{"n":"6"}}
      %all-gather-start = ((bf16[8,12]{1,0}, bf16[8,16]{1,0}), (bf16[16,12]{1,0}, bf16[16,16]{1,0})) all-gather-start(%bitcast.222.0, %bitcast.12080), channel_id=13, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, dimensions={0}, use_global_device_ids=true
      %bitcast.222.0 = bf16[8,12]{1,0} slice(%wrapped_slice.27), slice={[0:8], [0:12]}
      %bitcast.12080 = bf16[8,16]{1,0} slice(%gemm_fusion_dot.519), slice={[0:8], [0:16]}
      %all-gather-done = (bf16[16,12]{1,0}, bf16[16,16]{1,0}) all-gather-done(%all-gather-start)
      %reduce-scatter-start = ((bf16[16,12]{1,0}, bf16[16,16]{1,0}), (bf16[8,12]{1,0}, bf16[8,16]{1,0})) reduce-scatter-start(%wrapped_slice.27, %gemm_fusion_dot.519), channel_id=308, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, use_global_device_ids=true, dimensions={0}, to_apply=%add.55.clone
      %bitcast.77 = bf16[36864]{0} bitcast(%wrapped_transpose)
      %bitcast.78 = bf16[131072]{0} reshape(%gemm_fusion_dot.519)
      %wrapped_concatenate.1 = bf16[167936]{0} fusion(%bitcast.77, %bitcast.78), kind=kLoop, calls=%wrapped_concatenate_computation.1
      %all-reduce-start.2 = ((bf16[167936]{0}), bf16[167936]{0}) all-reduce-start(%wrapped_concatenate.1), channel_id=4, replica_groups=mesh['data'=4,'fsdp'=2,'model'=1] {'data','fsdp'}, use_global_device_ids=true, to_apply=%add.1.clone, output_to_operand_aliasing={{1}: (0, {})}
      %reduce-scatter-done = (bf16[8,12]{1,0}, bf16[8,16]{1,0}) reduce-scatter-done(%reduce-scatter-start)
      ROOT %all-reduce-done.2 = bf16[167936]{0} all-reduce-done(%all-reduce-start.2)
    }
""")  # noqa: E501


def test_products_of_triton_cublas_and_cudnn_are_counted():
    convolution = 2 * 16 * 16 * 3 * 3 * 64 * 64  # the same for both of its gradients
    # In the loop: six times [128, 512] x [512, 512], split into eight parts that are summed later.
    assert hlo.parse(STEP).flops() == 3 * convolution + 2 * 16 * 16 * 16 + 6 * 2 * 128 * 512 * 512


def test_calls_whose_work_is_unknown_are_refused():
    program = hlo.parse(STEP.replace("__cublas$lt$matmul", "__cublas$lt$groupedMatmul"))
    with pytest.raises(UserError, match=r"calls __cublas\$lt\$groupedMatmul; .* cannot count"):
        program.flops()
    # A sort has no products, also as a library call.
    other = hlo.parse(STEP.replace("__cublas$lt$matmul", "__cub$DeviceRadixSort"))
    assert other.flops() == hlo.parse(STEP).flops() - 2 * 16**3


def test_asynchronous_and_joined_collectives_are_found_once_with_their_parts():
    mesh = parallel.make_mesh(MeshConfig(fsdp=2))
    found = {
        collective.kind + str(collective.times): collective for collective in collectives.find(hlo.parse(STEP), mesh)
    }
    assert {name: (c.axes, c.group, [a.dims for a in c.arrays]) for name, c in found.items()} == {
        "all-reduce6.0": (("data", "fsdp"), 8, [(8, 128, 512)]),
        "all-gather1.0": (("fsdp",), 2, [(16, 12), (16, 16)]),
        "reduce-scatter1.0": (("fsdp",), 2, [(8, 12), (8, 16)]),
        "all-reduce1.0": (("data", "fsdp"), 8, [(36864,), (131072,)]),
    }
    assert found["all-reduce1.0"].bytes == 2 * 7 / 8 * 2 * 167936
    assert found["all-gather1.0"].bytes == found["reduce-scatter1.0"].bytes == 2 * (8 * 12 + 8 * 16)


def test_groups_in_a_notation_that_is_not_known_are_refused():
    text = STEP.replace("mesh['axis_0'=8] {'axis_0'}", "mesh['axis_0'=8] {'axis_0':(1)4}")
    with pytest.raises(UserError, match="cannot read the groups of devices"):
        collectives.find(hlo.parse(text), parallel.make_mesh(MeshConfig(fsdp=2)))


def test_descriptions_of_gpus_agree_with_their_peaks():
    gpus = [name for name, chip in CHIPS.items() if chip.compiler is CUDA]
    assert gpus == ["h100", "a100"]
    for name in gpus:
        fields = dict(line.split(": ") for line in target_config(name).splitlines() if line.count(": ") == 1)
        assert float(fields["  memory_bandwidth"]) == pytest.approx(CHIPS[name].memory_bandwidth, rel=1e-3)
        # The limit is the data sheet's 80 GB; the driver reports up to a fifteenth more.
        assert CHIPS[name].memory <= float(fields["  device_memory_size"]) < CHIPS[name].memory * 16 / 15


@pytest.mark.parametrize("size", ["0", "2x", "2x8x8", "eight"])
def test_clusters_of_an_impossible_size_are_refused(size):
    with pytest.raises(ValueError, match="nodes x GPUs per node"):
        chip_of(f"h100:{size}").compiler.describe("h100", size)


def test_missing_compiler_is_named_with_the_extra_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"the CUDA compiler .* is not installed; install the extra 'aot-gpu'"):
        slice_devices("h100:8")
