"""Bytes, operations, launches and collectives of compiled text, against closed forms and another reader."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hlo import collectives, copies
from jax.sharding import NamedSharding, PartitionSpec

from em_jax.model.sharding import make_mesh
from em_jax.perf.program_work import work_of_text
from em_jax.runs.chips import CHIPS

GPU = """HloModule step, is_scheduled=true

%fused_slice (p0: bf16[3,64,128], p1: s32[]) -> bf16[1,64,128] {
  %p0 = bf16[3,64,128]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = bf16[1,64,128]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,64,128}
}

%fused_append (q0: bf16[4,8,16], q1: bf16[4,1,16], q2: s32[]) -> bf16[4,8,16] {
  %q0 = bf16[4,8,16]{2,1,0} parameter(0)
  %q1 = bf16[4,1,16]{2,1,0} parameter(1)
  %q2 = s32[] parameter(2)
  %none = s32[] constant(0)
  ROOT %new = bf16[4,8,16]{2,1,0} dynamic-update-slice(%q0, %q1, %none, %q2, %none)
}

%fused_scatter (r0: bf16[4,8,16], r1: bf16[4,1,16], r2: s32[4,1]) -> bf16[4,8,16] {
  %r0 = bf16[4,8,16]{2,1,0} parameter(0)
  %r1 = bf16[4,1,16]{2,1,0} parameter(1)
  %r2 = s32[4,1]{1,0} parameter(2)
  ROOT %spread = bf16[4,8,16]{2,1,0} scatter(%r0, %r2, %r1), update_window_dims={1,2}, to_apply=%newer
}

%fused_matmul (a: bf16[32,64], b: bf16[64,128]) -> f32[32,128] {
  %a = bf16[32,64]{1,0} parameter(0)
  %b = bf16[64,128]{1,0} parameter(1)
  ROOT %dot = f32[32,128]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (s: (s32[], bf16[3,64,128], bf16[32,64], bf16[4,8,16], bf16[4,1,16])) -> (s32[], bf16[3,64,128]) {
  %s = (s32[], bf16[3,64,128]{2,1,0}, bf16[32,64]{1,0}, bf16[4,8,16]{2,1,0}, bf16[4,1,16]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %w = bf16[3,64,128]{2,1,0} get-tuple-element(%s), index=1
  %x = bf16[32,64]{1,0} get-tuple-element(%s), index=2
  %cache = bf16[4,8,16]{2,1,0} get-tuple-element(%s), index=3
  %row = bf16[4,1,16]{2,1,0} get-tuple-element(%s), index=4
  %one = bf16[1,64,128]{2,1,0} fusion(%w, %i), kind=kLoop, calls=%fused_slice, metadata={op_name="jit(f)/while"}
  %flat = bf16[64,128]{1,0} bitcast(%one)
  %y = f32[32,128]{1,0} fusion(%x, %flat), kind=kCustom, calls=%fused_matmul
  %places = s32[4,1]{1,0} broadcast(%i), dimensions={}
  %set = bf16[4,8,16]{2,1,0} fusion(%cache, %row, %places), kind=kInput, calls=%fused_scatter
  %kept = bf16[4,8,16]{2,1,0} fusion(%cache, %row, %i), kind=kLoop, calls=%fused_append
  ROOT %out = (s32[], bf16[3,64,128]{2,1,0}) tuple(%i, %w)
}

%cond (c: (s32[], bf16[3,64,128])) -> pred[] {
  %c = (s32[], bf16[3,64,128]{2,1,0}) parameter(0)
  %j = s32[] get-tuple-element(%c), index=0
  %n = s32[] constant(3)
  ROOT %less = pred[] compare(%j, %n), direction=LT
}

ENTRY %main (m0: bf16[32,64], m1: bf16[8,128], m2: bf16[2,16,4,8]) -> bf16[64,128] {
  %m0 = bf16[32,64]{1,0} parameter(0)
  %m1 = bf16[8,128]{1,0} parameter(1)
  %m2 = bf16[2,16,4,8]{3,2,1,0} parameter(2)
  %start = (bf16[8,128]{1,0}, bf16[64,128]{1,0}) all-gather-start(%m1), replica_groups={{0,1}}, dimensions={0}
  %attended = (bf16[2,16,4,8]{3,1,2,0}, u8[0]{0}) custom-call(%m2, %m2, %m2), custom_call_target="__cudnn$fmhaSoftmax",
"config": {
}}
  %loop = (s32[], bf16[3,64,128]{2,1,0}) while(%m0), condition=%cond, body=%body
  %done = bf16[64,128]{1,0} all-gather-done(%start)
  %bare = (bf16[8,128]{1,0}, bf16[64,128]{1,0}) all-gather-start(%m1), replica_groups={{0,1}}, dimensions={0}
  %end = bf16[64,128]{1,0} all-gather-done(%bare)
  ROOT %copy = bf16[64,128]{1,0} copy(%end)
}
"""
TPU = """HloModule step, is_scheduled=true

%begin (p: bf16[4,64]) -> (bf16[4,64], bf16[8,64], u32[]) {
  %p = bf16[4,64]{1,0} parameter(0)
  %gather = bf16[8,64]{1,0:T(8,128)(2,1)} all-gather(%p), dimensions={0}
  ROOT %call = (bf16[4,64], bf16[8,64], u32[]{:S(2)}) custom-call(%gather), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (a: bf16[8,64], x: bf16[8,2,64], k: bf16[64,32,1]) -> bf16[8,2,32] {
  %a = bf16[8,64]{1,0} parameter(0)
  %x = bf16[8,2,64]{2,1,0} parameter(1)
  %k = bf16[64,32,1]{1,0,2} parameter(2)
  %again = bf16[8,64]{1,0} all-gather(%a), dimensions={0}
  ROOT %conv = bf16[8,2,32]{2,1,0} convolution(%x, %k), window={size=1}, dim_labels=0bf_io0->0bf
}

%end (e: bf16[8,64]) -> bf16[8,64] {
  %e = bf16[8,64]{1,0} parameter(0)
  %last = bf16[8,64]{1,0} all-gather(%e), dimensions={0}
  ROOT %over = bf16[8,64]{1,0} custom-call(%last), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (m0: bf16[4,64], m1: bf16[8,2,64], m2: bf16[64,32,1]) -> bf16[8,64] {
  %m0 = bf16[4,64]{1,0} parameter(0)
  %m1 = bf16[8,2,64]{2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  %m2 = bf16[64,32,1]{1,0,2} parameter(2)
  %started = (bf16[4,64]{1,0}, bf16[8,64]{1,0}, u32[]{:S(2)}) fusion(%m0), kind=kCustom, calls=%begin
  %part = bf16[8,64]{1,0} get-tuple-element(%started), index=1
  %busy = bf16[8,2,32]{2,1,0} fusion(%part, %m1, %m2), kind=kOutput, calls=%async_collective_fusion.1
  ROOT %finished = bf16[8,64]{1,0} fusion(%part), kind=kCustom, calls=%end
}
"""


@pytest.mark.fast
def test_a_loop_is_multiplied_out_and_slices_and_updates_count_what_they_touch():
    work = work_of_text(GPU)
    slices, updates = 2 * 64 * 128 * 2, 2 * 4 * 16 * 2
    matmul = 2 * (32 * 64 + 64 * 128) + 4 * 32 * 128
    indices = 2 * 4 + 2 * 4 * 4
    attended, copied = 4 * 2 * 2 * 16 * 4 * 8, 2 * 2 * 64 * 128
    assert work.bytes == 3 * (slices + 2 * updates + matmul + indices) + attended + copied
    # Of causal attention's two products half is masked.
    assert work.flops == 3 * 2 * 32 * 64 * 128 + 2 * 2 * 4 * 16 * 16 * 8
    assert work.launches == 3 * 5 + 2
    assert work.kernels == ("__cudnn$fmhaSoftmax",)
    # A layer's weights are copied out of the stack before their matmul, and the gathered array at the end.
    assert copies(GPU, lambda shape: shape[-2:] == (64, 128)) == 3 + 1


@pytest.mark.fast
def test_a_collective_is_asynchronous_where_work_is_scheduled_meanwhile():
    work = work_of_text(GPU)
    every = [(each.kind, each.shape, each.hidden) for each in work.collectives]
    assert every == [("all-gather", (64, 128), True), ("all-gather", (64, 128), False)]
    assert work.async_collective_share == 0.5


@pytest.mark.fast
def test_a_tpu_gathers_once_within_fusions_that_still_count_what_they_multiply():
    work = work_of_text(TPU)
    assert [(each.shape, each.hidden) for each in work.collectives] == [((8, 64), True)]
    assert work.flops == 2 * 8 * 2 * 32 * 64 and work.kernels == ()
    # The activations are in the chip's own memory.
    assert work.bytes == 2 * (8 * 64 + 64 * 32 + 8 * 2 * 32)


NESTED = """HloModule scanned

%slice (stack: bf16[24,64,32], layer: s32[]) -> bf16[64,32] {
  %stack = bf16[24,64,32]{2,1,0} parameter(0)
  %layer = s32[] parameter(1)
  %zero = s32[] constant(0)
  %one = bf16[1,64,32]{2,1,0} dynamic-slice(%stack, %layer, %zero, %zero), dynamic_slice_sizes={1,64,32}
  ROOT %flat = bf16[64,32]{1,0} bitcast(%one)
}

%multiply (x: bf16[8,64], w: bf16[24,64,32], i: s32[]) -> bf16[8,32] {
  %x = bf16[8,64]{1,0} parameter(0)
  %w = bf16[24,64,32]{2,1,0} parameter(1)
  %i = s32[] parameter(2)
  %weight = bf16[64,32]{1,0} fusion(%w, %i), kind=kLoop, calls=%slice
  ROOT %product = bf16[8,32]{1,0} convolution(%x, %weight), dim_labels=bf_io->bf
}

ENTRY %main (m0: bf16[8,64], m1: bf16[24,64,32], m2: s32[]) -> bf16[8,32] {
  %m0 = bf16[8,64]{1,0} parameter(0)
  %m1 = bf16[24,64,32]{2,1,0} parameter(1)
  %m2 = s32[] parameter(2)
  ROOT %out = bf16[8,32]{1,0} fusion(%m0, %m1, %m2), kind=kOutput, calls=%multiply
}
"""
"""A layer's weights, which a TPU slices from the stack in a fusion within its matmul's."""


@pytest.mark.fast
def test_a_slice_of_a_fusion_within_a_fusion_counts_one_layer():
    assert work_of_text(NESTED).bytes == 2 * (8 * 64 + 64 * 32 + 8 * 32) + 4


RESHAPED = """HloModule head

%same (table: bf16[128,64]) -> bf16[128,64] {
  %table = bf16[128,64]{1,0} parameter(0)
  ROOT %flat = bf16[128,64]{1,0} bitcast(%table)
}

%multiply (x: bf16[8,64], w: bf16[128,64]) -> f32[8,128] {
  %x = bf16[8,64]{1,0} parameter(0)
  %w = bf16[128,64]{1,0} parameter(1)
  %weight = bf16[128,64]{1,0} fusion(%w), kind=kLoop, calls=%same
  ROOT %product = f32[8,128]{1,0} convolution(%x, %weight), dim_labels=bf_oi->bf
}

ENTRY %main (m0: bf16[8,64], m1: bf16[128,64]) -> f32[8,128] {
  %m0 = bf16[8,64]{1,0} parameter(0)
  %m1 = bf16[128,64]{1,0} parameter(1)
  ROOT %out = f32[8,128]{1,0} fusion(%m0, %m1), kind=kOutput, calls=%multiply
}
"""
"""A TPU's product with the head, which it passes through a fusion that only renames its axes."""


@pytest.mark.fast
def test_an_array_that_a_fusion_within_only_reshapes_is_read():
    assert work_of_text(RESHAPED).bytes == 2 * (8 * 64 + 128 * 64) + 4 * 8 * 128


PREFETCHED = """HloModule step, is_scheduled=true

%fused_slice (p0: bf16[3,64,128], p1: s32[]) -> bf16[1,64,128] {
  %p0 = bf16[3,64,128]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = bf16[1,64,128]{2,1,0:S(1)} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,64,128}
}

ENTRY %main (m0: bf16[3,64,128], m1: s32[], m2: bf16[8,128]) -> bf16[8,128] {
  %m0 = bf16[3,64,128]{2,1,0} parameter(0)
  %m1 = s32[]{:S(1)} parameter(1)
  %m2 = bf16[8,128]{1,0} parameter(2)
  %none = s32[] constant(0)
  %fused = bf16[1,64,128]{2,1,0:S(1)} fusion(%m0, %m1), kind=kLoop, calls=%fused_slice
  %plain = bf16[1,64,128]{2,1,0:S(1)} dynamic-slice(%m0, %m1, %none, %none), dynamic_slice_sizes={1,64,128}
  %row = bf16[1,128]{1,0:S(1)} slice(%plain), slice={[0:1], [0:1], [0:128]}
  ROOT %new = bf16[8,128]{1,0} dynamic-update-slice(%m2, %row, %m1, %none)
}
"""
"""A TPU takes a layer's weights into its own memory, by a fusion and by itself, and writes a row out of it."""


@pytest.mark.fast
def test_what_goes_into_a_chips_own_memory_is_read_and_what_leaves_it_is_written():
    layer, row = 64 * 128 * 2, 128 * 2
    assert [step.bytes for step in work_of_text(PREFETCHED).steps] == [layer, layer, 0, row]


TWO_PLACES = """HloModule step, is_scheduled=true

%fused_append (q0: bf16[1000,128], q1: bf16[1,128], q2: s32[], q3: f32[64,64]) -> (bf16[1000,128], f32[64,64]) {
  %q0 = bf16[1000,128]{1,0} parameter(0)
  %q1 = bf16[1,128]{1,0} parameter(1)
  %q2 = s32[] parameter(2)
  %q3 = f32[64,64]{1,0} parameter(3)
  %none = s32[] constant(0)
  %new = bf16[1000,128]{1,0} dynamic-update-slice(%q0, %q1, %q2, %none)
  %half = f32[64,64]{1,0} negate(%q3)
  ROOT %both = (bf16[1000,128]{1,0}, f32[64,64]{1,0}) tuple(%new, %half)
}

ENTRY %main (m0: bf16[1000,128], m1: bf16[1,128], m2: s32[], m3: f32[64,64]) -> (bf16[1000,128], f32[64,64]) {
  %m0 = bf16[1000,128]{1,0} parameter(0)
  %m1 = bf16[1,128]{1,0:S(1)} parameter(1)
  %m2 = s32[]{:S(1)} parameter(2)
  %m3 = f32[64,64]{1,0:S(1)} parameter(3)
  ROOT %kept = (bf16[1000,128]{1,0}, f32[64,64]{1,0:S(1)}) fusion(%m0, %m1, %m2, %m3), kind=kLoop, calls=%fused_append
}
"""
"""A row is written into an array in the main memory beside a result that stays on the chip."""


@pytest.mark.fast
def test_each_result_of_a_fusion_counts_where_it_is():
    assert work_of_text(TWO_PLACES).bytes == 128 * 2


PARTIAL_SUMS = """HloModule step, is_scheduled=true

%fused_keys (p: f32[4,8,48], b: bf16[8,48]) -> bf16[8,16] {
  %p = f32[4,8,48]{2,1,0} parameter(0)
  %zero = f32[] constant(0)
  %sum = f32[8,48]{1,0} reduce(%p, %zero), dimensions={0}, to_apply=%add
  %b = bf16[8,48]{1,0} parameter(1)
  %half = bf16[8,48]{1,0} convert(%sum)
  %both = bf16[8,48]{1,0} add(%half, %b)
  ROOT %keys = bf16[8,16]{1,0} slice(%both), slice={[0:8], [32:48]}
}

ENTRY %main (m0: f32[4,8,48], m1: bf16[8,48]) -> bf16[8,16] {
  %m0 = f32[4,8,48]{2,1,0} parameter(0)
  %m1 = bf16[8,48]{1,0} parameter(1)
  ROOT %out = bf16[8,16]{1,0} fusion(%m0, %m1), kind=kLoop, calls=%fused_keys
}
"""
"""A third of a product whose contraction was split in four."""


RESULTS = """HloModule step, is_scheduled=true

%fused_two (p: f32[8,48], q: f32[8,48]) -> (f32[8,48], f32[8,48]) {
  %p = f32[8,48]{1,0} parameter(0)
  %q = f32[8,48]{1,0} parameter(1)
  %sum = f32[8,48]{1,0} add(%p, %q)
  %product = f32[8,48]{1,0} multiply(%p, %q)
  ROOT %both = (f32[8,48]{1,0}, f32[8,48]{1,0}) tuple(%sum, %product)
}

%fused_flat (p: f32[8,48], q: f32[8,48]) -> f32[384] {
  %p = f32[8,48]{1,0} parameter(0)
  %q = f32[8,48]{1,0} parameter(1)
  %sum = f32[8,48]{1,0} add(%p, %q)
  ROOT %flat = f32[384]{0} bitcast(%sum)
}

%fused_update (p: bf16[8,48], q: f32[1,48], i: s32[]) -> f32[8,48] {
  %p = bf16[8,48]{1,0} parameter(0)
  %wide = f32[8,48]{1,0} convert(%p)
  %q = f32[1,48]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %new = f32[8,48]{1,0} dynamic-update-slice(%wide, %q, %i, %zero)
}

ENTRY %main (m0: f32[8,48], m1: f32[8,48], m2: bf16[8,48], m3: f32[1,48], m4: s32[]) -> f32[384] {
  %m0 = f32[8,48]{1,0} parameter(0)
  %m1 = f32[8,48]{1,0} parameter(1)
  %m2 = bf16[8,48]{1,0} parameter(2)
  %m3 = f32[1,48]{1,0} parameter(3)
  %m4 = s32[] parameter(4)
  %two = (f32[8,48]{1,0}, f32[8,48]{1,0}) fusion(%m0, %m1), kind=kLoop, calls=%fused_two
  %new = f32[8,48]{1,0} fusion(%m2, %m3, %m4), kind=kLoop, calls=%fused_update
  ROOT %out = f32[384]{0} fusion(%m0, %m1), kind=kLoop, calls=%fused_flat
}
"""
"""Results computed from whole parameters: two, a reshaped one, and a converted one that is updated."""


@pytest.mark.fast
def test_what_a_fusion_computes_needs_all_of_its_parameters():
    array, row = 8 * 48 * 4, 48 * 4
    two, updated, flat = (step.bytes for step in work_of_text(RESULTS).steps)
    assert (two, flat) == (4 * array, 3 * array)
    assert updated == 8 * 48 * 2 + row + 4 + row


@pytest.mark.fast
def test_of_sums_that_a_fusion_slices_it_reads_the_part_it_needs():
    assert work_of_text(PARTIAL_SUMS).bytes == 4 * 8 * 16 * 4 + 8 * 16 * 2 + 8 * 16 * 2


@pytest.mark.fast
def test_kernels_take_the_larger_of_operations_and_bytes():
    work, chip = work_of_text(GPU), CHIPS["h100"]
    assert work.seconds(chip) == pytest.approx(work.bytes / chip.bandwidth)
    assert work.seconds(chip) > work.flops / chip.flops


def test_a_program_of_this_jax_is_read_as_its_arrays_are():
    """A scan of matmuls over a mesh, compiled here: operations by the closed form, collectives as the tests' reader."""
    place = functools.partial(NamedSharding, make_mesh({"fsdp": 8}))
    x = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=place(PartitionSpec("fsdp")))
    w = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32, sharding=place(PartitionSpec(None, "fsdp")))

    def layer(x, w):
        return jnp.tanh(x @ jax.lax.with_sharding_constraint(w, place(PartitionSpec()))), None

    text = jax.jit(lambda x, w: jax.lax.scan(layer, x, w)[0]).lower(x, w).compile().as_text()
    work = work_of_text(text)
    assert work.flops == 5 * 2 * 2 * 64 * 64
    others = [each for each in collectives(text) if each.kind == "all-gather"]
    assert sum(each.times * each.size for each in others) == work.collective_bytes > 0
    assert np.isfinite(work.seconds(CHIPS["v5e"]))
