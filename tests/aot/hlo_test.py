"""Hand-counted numbers of small programs in the notation of the compiler."""

import textwrap

import pytest

from crossearth_jax.aot import hlo

LOOP = textwrap.dedent("""
    HloModule step, is_scheduled=true

    %add (a: f32[], b: f32[]) -> f32[] {
      %a = f32[] parameter(0)
      %b = f32[] parameter(1)
      ROOT %sum = f32[] add(%a, %b)
    }

    %fused (p: bf16[2,8,4], q: bf16[4,6,1]) -> bf16[2,8,6] {
      %p = bf16[2,8,4]{2,1,0:T(8,128)(2,1)} parameter(0)
      %q = bf16[4,6,1]{1,0,2:T(8,128)(2,1)S(1)} parameter(1)
      ROOT %product = bf16[2,8,6]{2,1,0} convolution(%p, %q), window={size=1}, dim_labels=0bf_io0->0bf
    }

    %body (state: (s32[], bf16[2,8,4])) -> (s32[], bf16[2,8,4]) {
      %state = (s32[]{:T(128)}, bf16[2,8,4]{2,1,0:T(8,128)(2,1)}) parameter(0)
      %i = s32[] get-tuple-element(%state), index=0
      %x = bf16[2,8,4]{2,1,0} get-tuple-element(%state), index=1
      %w = bf16[4,6,1]{1,0,2} constant({...})
      %y = bf16[2,8,6]{2,1,0} fusion(%x, %w), kind=kOutput, calls=%fused, backend_config={"estimated_cycles":"100"}
      %all = f32[8]{0} all-reduce(%y), channel_id=1, replica_groups={{0,1}}, to_apply=%add
      ROOT %next = (s32[], bf16[2,8,4]{2,1,0}) tuple(%i, %x)
    }

    %until (state: (s32[], bf16[2,8,4])) -> pred[] {
      %state.1 = (s32[]{:T(128)}, bf16[2,8,4]{2,1,0}) parameter(0)
      %i.1 = s32[] get-tuple-element(%state.1), index=0
      %end = s32[] constant(5)
      ROOT %less = pred[] compare(%i.1, %end), direction=LT
    }

    ENTRY %main (x: bf16[2,8,4]) -> bf16[2,8,4] {
      %x.1 = bf16[2,8,4]{2,1,0} parameter(0)
      %zero = s32[] constant(0)
      %start = (s32[], bf16[2,8,4]{2,1,0}) tuple(%zero, %x.1)
      %loop = (s32[], bf16[2,8,4]{2,1,0}) while(%start), condition=%until, body=%body
      ROOT %out = bf16[2,8,4]{2,1,0} get-tuple-element(%loop), index=1
    }
""")


def test_loops_count_as_often_as_they_run():
    program = hlo.parse(LOOP)
    assert program.entry == "main"
    # Five times: [16, 4] x [4, 6].
    assert program.flops() == 5 * 2 * 16 * 4 * 6
    assert program.cycles() == 5 * 100
    assert hlo.parse(LOOP.replace('"100"', '"9223372036854775807"')).cycles() == 0  # the compiler's "unknown"
    runs = {instruction.name: times for _, instruction, times in program.executed()}
    assert (runs["all"], runs["loop"], runs["product"]) == (5, 1, 5)
    assert "sum" not in runs


def test_loop_of_unknown_length_counts_once():
    text = LOOP.replace("compare(%i.1, %end), direction=LT", "compare(%i.1, %i.1), direction=NE")
    assert hlo.parse(text).flops() == 2 * 16 * 4 * 6


def test_shapes_know_their_bytes_and_memory():
    shapes = hlo.read_shapes("(f32[2,3]{1,0:T(8,128)}, bf16[4]{0:T(128)(2,1)S(1)}, /*index=2*/pred[], s8[3]{0})")
    assert [(shape.dtype, shape.nbytes, shape.fast_memory) for shape in shapes] == [
        ("f32", 24, False), ("bf16", 8, True), ("pred", 1, False), ("s8", 3, False),
    ]  # fmt: skip


def flops_of(result, left, right, operation):
    lines = f"%a = f32[{left}] parameter(0)", f"%b = f32[{right}] parameter(1)", f"ROOT %c = f32[{result}] {operation}"
    return hlo.parse("\n".join(["ENTRY %main (a: f32[], b: f32[]) -> f32[] {", *lines, "}"])).flops()


@pytest.mark.parametrize(
    ("side", "window", "flops"),
    [
        # 5 x 5 pixels, 3 x 3 taps, 2 channels to 4: along an axis five positions see 2 + 3 + 3 + 3 + 2 taps.
        (5, "size=3x3 pad=1_1x1_1", 2 * 13 * 13 * 2 * 4),
        (3, "size=3x3", 2 * 9 * 9 * 2 * 4),
        # Every second position: 2 + 3 + 2 taps.
        (3, "size=3x3 pad=1_1x1_1 stride=2x2", 2 * 7 * 7 * 2 * 4),
        # Dilation of 2: 2 + 2 + 3 + 2 + 2 taps.
        (5, "size=3x3 pad=2_2x2_2 rhs_dilate=2x2", 2 * 11 * 11 * 2 * 4),
    ],
)
def test_convolutions_count_the_taps_that_fall_on_pixels(side, window, flops):
    operation = f"convolution(%a, %b), window={{{window}}}, dim_labels=b01f_01io->b01f"
    assert flops_of(f"1,{side},{side},4", "1,5,5,2", "3,3,2,4", operation) == flops


def test_products_with_a_batch_are_counted():
    dot = "dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}"
    assert flops_of("3,4,6", "3,4,5", "3,5,6", dot) == 3 * 2 * 4 * 5 * 6
    # The same product in a TPU program: the batch is a spatial axis of which each position sees one tap.
    window = "window={size=3 stride=2 lhs_dilate=3}"
    assert flops_of("3,4,6", "3,4,5", "3,5,6", f"convolution(%a, %b), {window}, dim_labels=0bf_0io->0bf") == 3 * 240
