"""Collectives read from HLO text, in the forms in which compilers print them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from resnet_jax.profiling.collectives import Collective, find_collectives, summarize
from resnet_jax.profiling.hlo import Array, Module


def _program(*instructions: str, more: str = "") -> str:
    body = "\n".join(f"  {line}" for line in instructions)
    return f"""HloModule jit_run, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {{
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}}
{more}
ENTRY %main (p: f32[64]) -> f32[64] {{
  %p = f32[64]{{0:T(128)}} parameter(0)
{body}
  ROOT %r = f32[64]{{0}} copy(%p)
}}
"""


def _find(text: str) -> list[Collective]:
    return find_collectives(Module.parse(text), devices=8)


def _only(*instructions: str, more: str = "") -> Collective:
    (found,) = _find(_program(*instructions, more=more))
    return found


def test_a_tuple_is_one_collective_of_all_its_arrays():
    found = _only(
        "%all-reduce.7 = (f32[64]{0:T(128)S(1)}, bf16[3,3,64,64]{3,2,1,0:T(8,128)(2,1)}, "
        "/*index=2*/f32[]{:T(128)}) all-reduce(%p, %q, %r), channel_id=2, "
        "replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, use_global_device_ids=true, "
        'to_apply=%add, metadata={op_name="jit(run)/bn1 (x)/reduce_sum" stack_frame_id=12}'
    )
    assert found.kind == "all-reduce"
    assert found.arrays == (
        Array("f32", (64,), space=1),
        Array("bf16", (3, 3, 64, 64)),
        Array("f32", ()),
    )
    assert found.bytes == 64 * 4 + 9 * 64 * 64 * 2 + 4
    assert (found.group_size, found.asynchronous, found.times) == (4, False, 1)
    assert found.source == "jit(run)/bn1 (x)/reduce_sum"


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("{}", 8),
        ("[2,4]<=[8]", 4),
        ("[4,2]<=[2,4]T(1,0)", 2),
        ("mesh['a'=2,'b'=4] {'b'}", 4),
        ("mesh['a'=2,'b'=4] {'a','b'}", 8),
        ("mesh['a'=8] {'a':(2)4}", 4),
    ],
)
def test_groups_in_each_notation(groups, size):
    line = f"%a = f32[64] all-reduce(%p), replica_groups={groups}, to_apply=%add"
    assert _only(line).group_size == size


def test_a_start_and_its_end_are_one_asynchronous_collective():
    found = _only(
        "%s = f32[64]{0} all-reduce-start(%p), replica_groups={}, to_apply=%add",
        "%d = f32[64]{0} all-reduce-done(%s)",
    )
    assert (found.kind, found.asynchronous, found.bytes) == ("all-reduce", True, 256)
    assert found.overlapped_bytes == 0


def test_what_is_moved_between_the_start_and_the_end():
    found = _only(
        "%c = f32[64]{0} copy(%p)",
        "%s = f32[64]{0} all-reduce-start(%p), replica_groups={}, to_apply=%add",
        "%n = f32[64]{0} negate(%p)",
        "%d = f32[64]{0} all-reduce-done(%s)",
        "%e = f32[64]{0} copy(%d)",
    )
    assert found.overlapped_bytes == 512


def test_of_operands_and_results_only_the_results_count():
    gather = _only(
        "%s = (f32[8,4]{1,0}, f32[64,4]{1,0}) all-gather-start(%p), replica_groups={},"
        " dimensions={0}",
        "%d = f32[64,4]{1,0} all-gather-done(%s)",
    )
    assert gather.arrays == (Array("f32", (64, 4)),)
    several = _only(
        "%s = ((f32[8]{0}, bf16[2]{0}), (f32[64]{0}, bf16[16]{0})) all-gather-start(%p, %q),"
        " replica_groups=[1,8]<=[8], dimensions={0}"
    )
    assert several.arrays == (Array("f32", (64,)), Array("bf16", (16,)))
    permute = _only(
        "%s = (f32[64]{0}, f32[64]{0}, u32[], u32[]) collective-permute-start(%p),"
        " source_target_pairs={{0,1},{1,0}}"
    )
    assert (permute.bytes, permute.group_size) == (256, 2)


def test_a_reduce_scatter_counts_what_goes_in():
    found = _only(
        "%s = f32[8]{0} reduce-scatter(%p), replica_groups={}, dimensions={0}, to_apply=%add"
    )
    assert (found.kind, found.bytes) == ("reduce-scatter", 256)


def test_the_fused_form_of_a_reduce_scatter():
    more = """
%all-reduce-scatter.3 (q: f32[64]) -> f32[8] {
  %q = f32[64]{0} parameter(0)
  %all-reduce.9 = f32[64]{0} all-reduce(%q), replica_groups={}, to_apply=%add
  ROOT %part = f32[8]{0} dynamic-slice(%all-reduce.9, %q), dynamic_slice_sizes={8}
}
"""
    found = _only("%f = f32[8]{0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.3", more=more)
    assert (found.kind, found.bytes) == ("reduce-scatter", 256)


def test_a_wrapped_asynchronous_collective_counts_once():
    more = """
%wrapped (q: f32[64]) -> f32[64] {
  %q = f32[64]{0} parameter(0)
  ROOT %t = f32[64]{0} all-to-all(%q), replica_groups={}, dimensions={0}
}
"""
    found = _only(
        "%s = ((f32[64]), f32[64], u32[]) async-start(%p), calls=%wrapped",
        "%n = f32[64]{0} negate(%p)",
        "%u = ((f32[64]), f32[64], u32[]) async-update(%s), calls=%wrapped",
        "%d = f32[64] async-done(%u), calls=%wrapped",
        more=more,
    )
    assert (found.kind, found.asynchronous, found.times) == ("all-to-all", True, 1)
    assert found.overlapped_bytes == 512


LOOPS = """
%inner (s: (s32[], f32[64])) -> (s32[], f32[64]) {
  %s = (s32[], f32[64]) parameter(0)
  %a = f32[64]{0} all-reduce(%s), replica_groups={}, to_apply=%add
  ROOT %t = (s32[], f32[64]) tuple(%s, %a)
}

%outer (s: (s32[], f32[64])) -> (s32[], f32[64]) {
  %s = (s32[], f32[64]) parameter(0)
  ROOT %w = (s32[], f32[64]) while(%s), condition=%less, body=%inner, \
backend_config={"known_trip_count":{"n":"3"},"other":1}
}

%less (s: (s32[], f32[64])) -> pred[] {
  %s = (s32[], f32[64]) parameter(0)
  ROOT %l = pred[] compare(%s, %s), direction=LT
}
"""


def test_loops_multiply_where_their_length_is_known():
    line = "%w = (s32[], f32[64]) while(%p), condition=%less, body=%outer"
    assert _only(line, more=LOOPS).times == 3
    twice = line + ', backend_config={"known_trip_count":{"n":"2"}}'
    found = _only(twice, more=LOOPS)
    assert found.times == 6
    (row,) = summarize([found])
    assert (row["kind"], row["count"], row["bytes"]) == ("all-reduce", 6, 6 * 256)


def test_dead_computations_do_not_count():
    assert _find(_program(more=LOOPS)) == []


def test_what_is_not_understood_is_an_error():
    with pytest.raises(ValueError, match="no ENTRY"):
        Module.parse("not a program")
    with pytest.raises(ValueError, match="replica groups"):
        _only("%a = f32[64] all-reduce(%p), replica_groups=@odd, to_apply=%add")


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("pred", 1), ("bf16", 2), ("f32", 4), ("s64", 8), ("c64", 8), ("f8e4m3fn", 1), ("s4", 0.5)],
)
def test_bytes_of_types(dtype, size):
    assert Array(dtype, (4, 2)).bytes == 8 * size


def test_a_program_that_xla_really_compiled():
    """On eight devices: the sum of a split array is one all-reduce of one number."""
    mesh = make_mesh()
    total = jax.jit(jnp.sum, in_shardings=batch_sharding(mesh), out_shardings=replicated(mesh))
    x = np.ones((8, 1000), np.float32)
    text = total.lower(x).compile().as_text()
    (found,) = _find(text)
    assert (found.kind, found.bytes, found.group_size) == ("all-reduce", 4, 8)

    spread = jax.jit(
        lambda a: a * 2, in_shardings=batch_sharding(mesh), out_shardings=replicated(mesh)
    )
    (found,) = _find(spread.lower(x).compile().as_text())
    assert (found.kind, found.bytes, found.group_size) == ("all-gather", 32_000, 8)
