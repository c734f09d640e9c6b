"""Traffic of main memory, from programs small enough to count by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.profiling.hlo import Module
from resnet_jax.profiling.traffic import kernels_by_kind

KIB = 1024


def _moved(*instructions: str, more: str = "") -> int:
    """Bytes of a program with two arrays of 1 KiB: %far in main memory, %near on the chip."""
    body = "\n".join(f"  {line}" for line in instructions)
    text = f"""HloModule m
{more}
ENTRY %main (far: f32[256], near: f32[256], i: s32[]) -> f32[256] {{
  %far = f32[256]{{0:T(256)}} parameter(0)
  %near = f32[256]{{0:T(256)S(1)}} parameter(1)
  %i = s32[]{{:T(128)S(2)}} parameter(2)
{body}
  ROOT %same = f32[256]{{0:T(256)}} bitcast(%far)
}}
"""
    return sum(kernels.bytes for kernels in kernels_by_kind(Module.parse(text)))


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("%a = f32[256]{0} add(%far, %far)", 3 * KIB),
        ("%a = f32[256]{0:T(256)S(1)} add(%far, %near)", KIB),
        ("%a = f32[256]{0:T(256)S(1)} add(%near, %near)", 0),
        ("%a = bf16[256]{0} convert(%far)", KIB + KIB // 2),
        ("%a = (f32[256]{0}, f32[256]{0:S(1)}) tuple(%far, %near)", 0),
        ("%a = f32[16]{0} dynamic-slice(%far, %i), dynamic_slice_sizes={16}", 128),
        ("%a = f32[16]{0} dynamic-slice(%near, %i), dynamic_slice_sizes={16}", 64),
        ("%a = f32[256]{0} dynamic-update-slice(%far, %few, %i)", 128),
        ('%a = f32[256]{0} custom-call(%far), custom_call_target="AllocateBuffer"', 0),
        ('%a = f32[256]{0} custom-call(%far), custom_call_target="kernel"', 2 * KIB),
        ("%a = f32[256]{0} all-reduce(%far), replica_groups={}, to_apply=%x", 2 * KIB),
    ],
)
def test_an_instruction_counts_what_it_reads_and_writes_there(instruction, expected):
    few = "%few = f32[16]{0} constant({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5})"
    assert _moved(few, instruction) == expected


def test_a_copy_to_the_chip_is_read_once():
    assert (
        _moved(
            "%c = (f32[256]{0:T(256)S(1)}, f32[256]{0:T(256)}, u32[]{:S(2)}) copy-start(%far)",
            "%d = f32[256]{0:T(256)S(1)} copy-done(%c)",
        )
        == KIB
    )
    assert (
        _moved(
            "%c = ((f32[256]{0:T(256)}), f32[64]{0:S(1)}, s32[]{:S(2)}) slice-start(%far),"
            " slice={[0:64]}",
            "%d = f32[64]{0:S(1)} slice-done(%c)",
        )
        == KIB // 4
    )


FUSIONS = """
%reads_a_part (p: f32[256], i: s32[]) -> f32[16] {
  %p = f32[256]{0} parameter(0)
  %j = s32[] parameter(1)
  %s = f32[16]{0} dynamic-slice(%p, %j), dynamic_slice_sizes={16}
  ROOT %t = f32[16]{0} add(%s, %s)
}

%writes_a_part (p: f32[256], q: f32[16], i: s32[]) -> f32[256] {
  %p = f32[256]{0} parameter(0)
  %q = f32[16]{0} parameter(1)
  %j = s32[] parameter(2)
  %v = f32[16]{0} add(%q, %q)
  ROOT %u = f32[256]{0} dynamic-update-slice(%p, %v, %j)
}
"""


def test_a_fusion_counts_its_ends_and_only_parts_of_arrays_it_cuts():
    part = "%f = f32[16]{0} fusion(%far, %i), kind=kLoop, calls=%reads_a_part"
    assert _moved(part, more=FUSIONS) == 2 * 64
    write = "%w = f32[256]{0} fusion(%far, %f, %i), kind=kLoop, calls=%writes_a_part"
    assert _moved(part, write, more=FUSIONS) == 4 * 64


def test_a_program_that_xla_really_compiled():
    """Ten times an array is read and written by a loop, and once copied into it and out."""
    x = np.ones(1_000_000, np.float32)

    def ten_steps(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 10, lambda _, y: jnp.sin(y) * y, x)

    text = jax.jit(ten_steps).lower(x).compile().as_text()
    moved = sum(kernels.bytes for kernels in kernels_by_kind(Module.parse(text)))
    assert moved == pytest.approx(10 * 8_000_000, rel=0.25)


GPU_KERNELS = """HloModule m

%loop (p: f32[256]) -> f32[256] {
  %p = f32[256]{0} parameter(0)
  ROOT %n = f32[256]{0} negate(%p)
}

%product (q: f32[256]) -> f32[256] {
  %q = f32[256]{0} parameter(0)
  ROOT %m = f32[256]{0} negate(%q)
}

ENTRY %main (x: f32[256]) -> f32[256] {
  %x = f32[256]{0} parameter(0)
  %a = f32[256]{0} fusion(%x), kind=kLoop, calls=%loop
  %b = f32[256]{0} fusion(%a), kind=kCustom, calls=%product, \
backend_config={"a":"0","fusion_backend_config":{"kind":"__triton_nested_gemm_fusion","c":1}}
  %c = (f32[256]{0}, u8[0]{0}) custom-call(%b, %x), custom_call_target="__cudnn$convForward"
  %d = f32[256]{0} get-tuple-element(%c), index=0
  %e = f32[256]{0} all-reduce-start(%d), replica_groups={}, to_apply=%add
  %f = f32[256]{0} all-reduce-done(%e)
  ROOT %g = f32[256]{0} copy(%f)
}
"""


def test_kernels_of_a_gpu_by_what_computes_them():
    kernels = kernels_by_kind(Module.parse(GPU_KERNELS))
    assert {one.kind: (one.count, one.bytes) for one in kernels} == {
        "cuDNN": (1, 3 * KIB),
        "loop fusion": (1, 2 * KIB),
        "Triton": (1, 2 * KIB),
        "all-reduce": (1, 2 * KIB),
        "copy": (1, 2 * KIB),
    }
    assert kernels[0].kind == "cuDNN"
