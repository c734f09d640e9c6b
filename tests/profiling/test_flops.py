"""Operations counted from programs, against sums done by hand and XLA's own."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from resnet_jax.profiling.flops import count_flops
from resnet_jax.profiling.hlo import Module
from resnet_jax.profiling.slices import describe_slice


def _count(*instructions: str) -> float:
    body = "\n".join(f"  {line}" for line in instructions)
    parameters = (
        "  %x = bf16[8,14,14,64]{3,2,1,0} parameter(0)\n"
        "  %w = bf16[128,3,3,64]{3,2,1,0} parameter(1)\n"
        "  %y = bf16[8,14,14,128]{3,2,1,0} parameter(2)\n"
        "  %a = bf16[4,32,16]{2,1,0} parameter(3)\n"
        "  %b = bf16[4,16,8]{2,1,0} parameter(4)"
    )
    text = f"HloModule m\n\nENTRY %main (x: f32[]) -> f32[] {{\n{parameters}\n{body}\n}}\n"
    return count_flops(Module.parse(text))


# Along an axis of 14 with a padding of 1, three taps meet 14, and 13 twice.
FORWARD = 2 * 8 * 64 * 128 * (14 + 2 * 13) ** 2
WINDOW = "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f"


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        (f"(bf16[8,14,14,128], u8[0]) custom-call(%x, %w), {WINDOW}, {{}}Forward", FORWARD),
        (f"(bf16[8,14,14,64], u8[0]) custom-call(%y, %w), {WINDOW}, {{}}BackwardInput", FORWARD),
        (f"(bf16[128,3,3,64], u8[0]) custom-call(%x, %y), {WINDOW}, {{}}BackwardFilter", FORWARD),
        (f"bf16[8,14,14,128] convolution(%x, %w), {WINDOW}", FORWARD),
        (
            "f32[4,32,8] dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2},"
            " rhs_batch_dims={0}, rhs_contracting_dims={1}",
            2 * 4 * 32 * 16 * 8,
        ),
        (
            '(f32[4,32,8], s8[64]) custom-call(%a, %b), custom_call_target="__cublas$gemm",'
            ' backend_config={"gemm_backend_config":{"dot_dimension_numbers":'
            '{"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["1"]}}}',
            2 * 4 * 32 * 16 * 8,
        ),
        ("bf16[8,14,14,64] add(%x, %x)", 0),
    ],
)
def test_each_form_of_a_product(instruction, expected):
    target = 'custom_call_target="__cudnn$conv'
    for kind in ("Forward", "BackwardInput", "BackwardFilter"):
        instruction = instruction.replace(f"{{}}{kind}", f'{target}{kind}"')
    assert _count(f"ROOT %r = {instruction}") == expected


CONVOLUTIONS = pytest.mark.parametrize(
    ("strides", "padding", "dilation", "input_dilation", "groups"),
    [
        ((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 1),
        ((2, 2), ((0, 1), (2, 0)), (1, 1), (1, 1), 1),
        ((1, 1), ((2, 2), (2, 2)), (2, 2), (1, 1), 4),
        ((1, 1), ((2, 1), (2, 1)), (1, 1), (2, 2), 1),
    ],
)


def _convolution(strides, padding, dilation, input_dilation, groups):
    def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x, w, strides, padding, input_dilation, dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
        )  # fmt: skip

    return convolve


@CONVOLUTIONS
def test_convolutions_count_as_in_xlas_own_analysis(
    strides, padding, dilation, input_dilation, groups
):
    x, w = jnp.ones((4, 9, 11, 8)), jnp.ones((3, 3, 8 // groups, 12))
    convolve = _convolution(strides, padding, dilation, input_dilation, groups)
    lowered = jax.jit(convolve).lower(x, w)
    module = Module.parse(lowered.compile().as_text())
    assert count_flops(module) == lowered.cost_analysis()["flops"]


@pytest.fixture(scope="module")
def on_tpu():
    """A function that makes the shape of an array on a TPU that isn't there."""
    pytest.importorskip("libtpu")
    device = describe_slice("v5e:2x2").devices[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    return lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)


def _counted_on_tpu(function, *shapes):
    """Operations by our count and by the TPU compiler's."""
    compiled = jax.jit(function).lower(*shapes).compile()
    return count_flops(Module.parse(compiled.as_text())), compiled.cost_analysis()["flops"]


@pytest.mark.tpu
@CONVOLUTIONS
def test_convolutions_and_gradients_count_as_by_the_tpu_compiler(
    on_tpu, strides, padding, dilation, input_dilation, groups
):
    x, w = on_tpu(32, 28, 30, 64), on_tpu(3, 3, 64 // groups, 128)
    convolve = _convolution(strides, padding, dilation, input_dilation, groups)
    y = on_tpu(*jax.eval_shape(convolve, x, w).shape)

    def of_images(w, y):
        return jax.linear_transpose(lambda x: convolve(x, w), x)(y)

    def of_kernel(x, y):
        return jax.linear_transpose(lambda w: convolve(x, w), w)(y)

    for function, operands in ((convolve, (x, w)), (of_images, (w, y)), (of_kernel, (x, y))):
        ours, compilers = _counted_on_tpu(function, *operands)
        assert ours == compilers > 0


@pytest.mark.tpu
def test_products_count_as_by_the_tpu_compiler(on_tpu):
    ours, compilers = _counted_on_tpu(jnp.matmul, on_tpu(4, 512, 256), on_tpu(4, 256, 128))
    assert ours == compilers == 2 * 4 * 512 * 256 * 128


def test_loops_count_their_iterations_or_once():
    def thrice(x: jax.Array) -> jax.Array:
        return lax.fori_loop(0, 3, lambda _, y: y @ x, x)

    module = Module.parse(jax.jit(thrice).lower(jnp.ones((16, 16))).compile().as_text())
    one = 2 * 16**3
    assert count_flops(module) == 3 * one
    assert count_flops(module, repeat_loops=False) == one


def test_what_is_not_understood_is_an_error():
    with pytest.raises(ValueError, match="dimensions of this product"):
        _count("ROOT %r = f32[4,32,8] dot(%a, %b)")
    with pytest.raises(ValueError, match="convolution isn't understood"):
        _count("ROOT %r = bf16[8,14,14,128] convolution(%x, %w)")
