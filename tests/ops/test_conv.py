"""The convolution's own backward pass is XLA's, up to rounding, wherever it is used."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import resnet_jax
from resnet_jax.ops.conv import conv2d

# image [n, h, w, ci], kernel size, stride, padding per side, groups, co, dilation if not 1
CASES = {
    "3x3": ((2, 7, 6, 4), 3, 1, 1, 1, 5),
    "3x3, batch in blocks": ((64, 12, 11, 2), 3, 1, 1, 1, 3),
    "3x3 stride 2, even": ((2, 8, 6, 4), 3, 2, 1, 1, 5),
    "3x3 stride 2, odd": ((2, 9, 5, 4), 3, 2, 1, 1, 5),
    "3x3 stride 2, blocks": ((64, 23, 24, 2), 3, 2, 1, 1, 3),
    "3x3 without padding": ((2, 8, 8, 3), 3, 2, 0, 1, 4),
    "3x3 on 2x2": ((3, 2, 2, 4), 3, 1, 1, 1, 5),
    "3x3 stride 2 on 2x2": ((3, 2, 2, 4), 3, 2, 1, 1, 5),
    "3x3 on 1x1": ((3, 1, 1, 4), 3, 1, 1, 1, 5),
    "3x3 stride 2 to 1x1": ((3, 3, 3, 4), 3, 2, 1, 1, 5),
    "1x1": ((2, 5, 4, 4), 1, 1, 0, 1, 6),
    "1x1 stride 2, even": ((2, 6, 4, 4), 1, 2, 0, 1, 6),
    "1x1 stride 2, odd": ((2, 5, 7, 4), 1, 2, 0, 1, 6),
    "7x7 stem": ((2, 16, 15, 3), 7, 2, 3, 1, 4),
    "7x7 stem on 6x6": ((2, 6, 6, 3), 7, 2, 3, 1, 4),
    "grouped": ((2, 6, 5, 8), 3, 1, 1, 4, 12),
    "grouped stride 2": ((2, 6, 5, 8), 3, 2, 1, 4, 12),
    "grouped 1x1": ((2, 4, 4, 8), 1, 1, 0, 2, 6),
    "dilated by 2": ((2, 9, 8, 4), 3, 1, 2, 1, 5, 2),
    "dilated by 4, batch in blocks": ((64, 12, 11, 2), 3, 1, 4, 1, 3, 4),
    "dilated by 2, stride 2": ((2, 9, 8, 4), 3, 2, 2, 1, 5, 2),
    "dilated by 2 on 2x2": ((2, 2, 2, 4), 3, 1, 2, 1, 5, 2),
    "grouped, dilated by 2": ((2, 6, 5, 8), 3, 1, 2, 4, 12, 2),
    "Winograd": ((4, 8, 8, 32), 3, 1, 1, 1, 32),
    "Winograd, odd, without padding": ((6, 9, 7, 33), 3, 1, 0, 1, 40),
    "Winograd, gradients too": ((18, 8, 7, 128), 3, 1, 1, 1, 130),
}
IN_BLOCKS = ("3x3, batch in blocks", "3x3 stride 2, blocks", "Winograd", "Winograd, gradients too")


def setup(case, dtype=jnp.float32):
    """Return the two convolutions, the package's and XLA's, and x, kernel and output gradient."""
    shape, size, stride, pad, groups, co, dilation = (*case, 1)[:7]
    options = {"padding": ((pad, pad),) * 2, "feature_group_count": groups}
    ours = partial(conv2d, strides=(stride, stride), dilation=(dilation, dilation), **options)
    xla = partial(
        lax.conv_general_dilated,
        window_strides=(stride, stride),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        **options,
    )
    rng = np.random.default_rng(0)
    kernel_shape = (size, size, shape[-1] // groups, co)
    reach = (size - 1) * dilation + 1
    y_shape = (shape[0], *((s + 2 * pad - reach) // stride + 1 for s in shape[1:3]), co)
    arrays = (jnp.asarray(rng.normal(size=s), dtype) for s in (shape, kernel_shape, y_shape))
    return ours, xla, *arrays


def backward(conv):
    """Return (x, kernel, output gradient) ↦ (output, input gradient, kernel gradient)."""

    def run(x, kernel, grad):
        y, vjp = jax.vjp(conv, x, kernel)
        return y, *vjp(grad)

    return run


def reference(case, x, kernel, grad):
    """Return output and gradients in float64, tap by tap."""
    shape, size, stride, pad, groups, co, dilation = (*case, 1)[:7]
    x, kernel, grad = (np.asarray(a.astype(jnp.float32), np.float64) for a in (x, kernel, grad))
    n, ho, wo, _ = grad.shape
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    grouped = padded.reshape(*padded.shape[:3], groups, -1)
    grad = grad.reshape(n, ho, wo, groups, -1)
    weights = kernel.reshape(size, size, -1, groups, co // groups)
    y, dx, dk = np.zeros_like(grad), np.zeros_like(grouped), np.zeros_like(weights)
    for i, j in np.ndindex(size, size):
        top, left = i * dilation, j * dilation
        rows = np.s_[top : top + (ho - 1) * stride + 1 : stride]
        columns = np.s_[left : left + (wo - 1) * stride + 1 : stride]
        at = np.s_[:, rows, columns]
        y += np.einsum("nhwgi,igo->nhwgo", grouped[at], weights[i, j])
        dx[at] += np.einsum("nhwgo,igo->nhwgi", grad, weights[i, j])
        dk[i, j] = np.einsum("nhwgi,nhwgo->igo", grouped[at], grad)
    dx = dx.reshape(padded.shape)[:, pad : pad + shape[1], pad : pad + shape[2]]
    return y.reshape(n, ho, wo, co), dx, dk.reshape(kernel.shape)


def assert_close(actual, expected, rtol):
    """Compare up to `rtol` of the largest value, leaf by leaf."""
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        atol = rtol * np.abs(e).max()
        np.testing.assert_allclose(np.asarray(a, np.float64), e, rtol=0, atol=atol)


@pytest.mark.parametrize("name", CASES)
def test_equals_xla_and_float64(name):
    ours, xla, *args = setup(CASES[name])
    actual = jax.jit(backward(ours))(*args)
    assert_close(actual, jax.jit(backward(xla))(*args), 3e-6)
    assert_close(actual, reference(CASES[name], *args), 3e-6)


@pytest.mark.parametrize("name", IN_BLOCKS)
def test_some_images_at_a_time(name, monkeypatch):
    # As if all of them exceeded what the caches hold.
    within = "resnet_jax.ops.conv_cpu._images_within"
    monkeypatch.setattr(within, lambda _limit, x, _bytes: x.shape[0] // 3)
    (images, *shape), *rest = CASES[name]
    case = ((3 * images, *shape), *rest)  # no other test's, whose trace would be used again
    ours, _, *args = setup(case)
    run = jax.jit(backward(ours))
    assert "while" in run.lower(*args).as_text()
    assert_close(run(*args), reference(case, *args), 3e-6)


@pytest.mark.parametrize(
    "name", ["3x3, batch in blocks", "1x1 stride 2, odd", "grouped", "Winograd"]
)
def test_bfloat16_rounds_only_the_result(name):
    ours, _, *args = setup(CASES[name], jnp.bfloat16)
    actual = jax.jit(backward(ours))(*args)
    assert all(a.dtype == jnp.bfloat16 for a in actual)
    assert_close([a.astype(jnp.float32) for a in actual], reference(CASES[name], *args), 2.0**-8)


STACK = ("3x3, batch in blocks", "1x1 stride 2, odd", "3x3 on 2x2", "grouped stride 2")


@pytest.mark.parametrize("name", STACK)
def test_scanned_steps_equal_unrolled_ones(name):
    ours, _, x, kernel, grad = setup(CASES[name])

    def step(carry, _=None):
        _, dx, dk = backward(ours)(*carry, grad)
        return (carry[0] - 0.01 * dx, carry[1] - 0.01 * dk), None

    scanned = jax.jit(lambda carry: lax.scan(step, carry, length=2)[0])((x, kernel))
    unrolled = jax.jit(lambda carry: step(step(carry)[0])[0])((x, kernel))
    assert_close(scanned, unrolled, 3e-6)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3])
def test_sharded_batch_needs_one_all_reduce_and_no_gather(size, stride):
    devices = np.array(jax.devices())
    mesh = Mesh(devices, ("data",))
    sharded, replicated = (NamedSharding(mesh, PartitionSpec(*axis)) for axis in (["data"], []))
    shape = (64 * len(devices), 8, 8, 4)  # large enough to be summed in blocks
    ours, _, *args = setup((shape, size, stride, size // 2, 1, 8))
    run = jax.jit(
        backward(ours),
        in_shardings=(sharded, replicated, sharded),
        out_shardings=(sharded, sharded, replicated),
    )
    compiled = run.lower(*args).compile()
    text = compiled.as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert f" {collective}(" not in text
        assert f" {collective}-start(" not in text
    assert text.count(" all-reduce(") + text.count(" all-reduce-start(") <= 1
    on_mesh = [
        jax.device_put(a, s) for a, s in zip(args, (sharded, replicated, sharded), strict=True)
    ]
    assert_close(compiled(*on_mesh), jax.jit(backward(ours))(*args), 1e-5)


def operations(conv, args, platform):
    """Return the opcodes and shapes of the HLO lowered for a platform, names left out."""
    lowered = jax.jit(backward(conv)).trace(*args).lower(lowering_platforms=(platform,))
    lines = lowered.compiler_ir("hlo").as_hlo_text().splitlines()
    return sorted(line.split(" = ")[1].split("(")[0] for line in lines if " = " in line)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_other_platforms_run_xlas_own_gradient(platform, name):
    ours, xla, *args = setup(CASES[name])
    assert operations(ours, args, platform) == operations(xla, args, platform)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_lowering_for_another_platform_asks_for_no_cpu(platform, monkeypatch):
    """With JAX_PLATFORMS=cuda there is none to be asked for."""

    def devices(backend=None):
        raise RuntimeError(f"Unknown backend {backend}")

    for name in ("devices", "local_devices", "device_count", "local_device_count"):
        monkeypatch.setattr(jax, name, devices)
    model = resnet_jax.create_model("resnet50", stage_sizes=(1, 1), width=4, num_classes=3)
    images = jax.ShapeDtypeStruct((4, 9, 9, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    def loss(params, images):
        logits, _ = model.apply(
            variables | {"params": params}, images, train=True, mutable=["batch_stats"]
        )
        return logits.sum()

    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), variables)
    traced = jax.jit(jax.grad(loss)).trace(variables["params"], images)
    assert "stablehlo.convolution" in traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("name", ["3x3 stride 2, odd", "1x1", "grouped", "Winograd"])
def test_in_shard_map_gradients_of_kernels_are_summed_over_devices(name):
    ours, xla, x, kernel, _ = setup(CASES[name])
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))

    def gradients(conv, kernel, x):
        return jax.grad(lambda *args: jnp.sum(jnp.sin(conv(*args))), (1, 0))(x, kernel)

    split = jax.shard_map(
        partial(gradients, ours),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("data")),
        out_specs=(PartitionSpec(), PartitionSpec("data")),
    )
    assert_close(jax.jit(split)(kernel, x), jax.jit(partial(gradients, xla))(kernel, x), 3e-5)


def test_lowering_for_the_cpu_leaves_no_branch():
    ours, xla, *args = setup(CASES["3x3"])
    cpu = operations(ours, args, "cpu")
    assert not any("conditional" in operation for operation in cpu)
    assert cpu != operations(xla, args, "cpu")


@pytest.mark.parametrize("name", ["3x3 stride 2, odd", "1x1 stride 2, odd", "grouped"])
def test_composes_with_transformations(name):
    ours, xla, x, kernel, _ = setup(CASES[name])

    def loss(conv, kernel, x):
        return jnp.sum(jnp.sin(conv(x, kernel)))

    def everything(conv, kernel, x):
        grad = jax.grad(partial(loss, conv))
        again = jax.grad(lambda kernel, x: jnp.sum(grad(kernel, x) ** 2), argnums=(0, 1))
        kernels = jnp.stack([kernel, 2 * kernel])
        return {
            "reverse over reverse": again(kernel, x),
            "forward": jax.jvp(conv, (x, kernel), (jnp.cos(x), jnp.ones_like(kernel)))[1],
            "forward over reverse": jax.jvp(grad, (kernel, x), (jnp.ones_like(kernel), x))[1],
            "reverse over forward": jax.grad(
                lambda kernel: jnp.sum(jnp.sin(jax.jvp(conv, (x, kernel), (x, kernel))[1]))
            )(kernel),
            "checkpoint": jax.grad(jax.checkpoint(partial(loss, conv)))(kernel, x),
            "vmap over images": jax.vmap(grad, (None, 0))(kernel, jnp.stack([x, -x])),
            "vmap over kernels": jax.vmap(grad, (0, None))(kernels, x),
            "gradient of vmap over kernels": jax.grad(
                lambda x: jnp.sum(jnp.sin(jax.vmap(conv, (None, 0))(x, kernels)))
            )(x),
            "gradient of vmap over both": jax.grad(
                lambda kernel: jnp.sum(
                    jnp.sin(
                        jax.vmap(jax.vmap(conv, (0, None)), (None, 0))(
                            jnp.stack([x, 2 * x]), jnp.stack([kernel, 3 * kernel])
                        )
                    )
                )
            )(kernel),
        }

    actual = jax.jit(partial(everything, ours))(kernel, x)
    shapes = jax.eval_shape(partial(everything, ours), kernel, x)
    assert jax.tree.map(jnp.shape, actual) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    assert_close(actual, jax.jit(partial(everything, xla))(kernel, x), 3e-5)
