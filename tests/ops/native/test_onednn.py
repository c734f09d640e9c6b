"""oneDNN's convolutions against XLA's."""

import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import resnet_jax
from resnet_jax.inference.export import export_program
from resnet_jax.ops.activation import relu
from resnet_jax.ops.conv import conv2d
from resnet_jax.ops.fusion import fuse
from resnet_jax.ops.native.library import State
from resnet_jax.ops.prepared import Prepared

# height, width, ci, kernel, co, stride, padding, dilation
CASES = [
    (8, 8, 3, 3, 8, 1, ((1, 1), (1, 1)), 1),
    (9, 7, 16, 3, 32, 2, ((1, 1), (1, 1)), 1),
    (8, 8, 16, 1, 32, 2, ((0, 0), (0, 0)), 1),
    (8, 10, 12, 4, 16, 1, ((2, 1), (2, 1)), 1),
    (9, 9, 8, 3, 8, 1, ((2, 2), (2, 2)), 2),
    (2, 2, 16, 3, 16, 1, ((1, 1), (1, 1)), 1),
    (4, 4, 192, 3, 192, 1, ((1, 1), (1, 1)), 1),  # a kernel that all threads share
]
TARGETS = ("resnet_jax_forward", "resnet_jax_input_gradient", "resnet_jax_kernel_gradient")


def _close(found, wanted, rtol):
    for pair in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        a, b = (np.asarray(array, np.float64) for array in pair)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


def _convolutions(case, dtype):
    """The package's and XLA's, an image, a kernel and a gradient."""
    h, w, ci, k, co, s, pad, d = case
    x = jax.random.normal(jax.random.key(0), (4, h, w, ci), dtype)
    kernel = jax.random.normal(jax.random.key(1), (k, k, ci, co), dtype) / k
    ours = partial(conv2d, strides=(s, s), padding=pad, dilation=(d, d))
    xla = partial(
        lax.conv_general_dilated,
        window_strides=(s, s),
        padding=pad,
        rhs_dilation=(d, d),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    y = jax.eval_shape(ours, x, kernel)
    return ours, xla, x, kernel, jax.random.normal(jax.random.key(2), y.shape, dtype)


def _both_passes(conv):
    def run(x, kernel, grad):
        y, pull = jax.vjp(conv, x, kernel)
        return y, pull(grad)

    return jax.jit(run)


@pytest.mark.parametrize("case", CASES)
def test_results_and_gradients_are_xlas(case, onednn):
    ours, xla, *args = _convolutions(case, jnp.float32)
    run = _both_passes(ours)
    assert all(target in run.lower(*args).as_text() for target in TARGETS)
    _close(run(*args), _both_passes(xla)(*args), 1e-5)
    ours, xla, *args = _convolutions(case, jnp.bfloat16)
    wide = [a.astype(jnp.float32) for a in args]
    _close(_both_passes(ours)(*args), _both_passes(xla)(*wide), 2e-2)


@pytest.mark.parametrize("case", CASES[1:3])
def test_derivatives_of_every_order_are_xlas(case, onednn):
    ours, xla, x, kernel, _ = _convolutions(case, jnp.float32)

    def everything(conv, *args):
        def energy(x, kernel):
            return jnp.sum(jnp.sin(conv(x, kernel)))

        def slope(x, kernel):
            return jnp.sum(jax.grad(energy)(x, kernel) ** 2)

        both = jax.grad(energy, (0, 1))
        stack = jnp.stack([args[1], 2 * args[1]])
        return (
            jax.grad(slope, (0, 1))(*args),
            jax.jvp(conv, args, args),
            jax.jvp(both, args, args)[1],
            jax.vmap(conv, (None, 0))(args[0], stack),
            jax.vmap(both, (None, 0))(args[0], stack),
            jax.vmap(both, (0, None))(jnp.stack([args[0], -args[0]]), args[1]),
        )

    found = jax.jit(partial(everything, ours))(x, kernel)
    _close(found, jax.jit(partial(everything, xla))(x, kernel), 1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_what_follows_a_convolution_is_part_of_its_call(case, dtype, onednn):
    ours, xla, x, kernel, summand = _convolutions(case, dtype)
    bias = jax.random.normal(jax.random.key(3), kernel.shape[3:])

    def ended(conv, x, kernel, bias, summand):
        y = conv(x, kernel)
        y = (y.astype(jnp.float32) + bias).astype(x.dtype)
        return relu(summand + y), 2 * summand  # the summand is needed afterwards, too

    run = jax.jit(fuse(partial(ended, ours)))
    text = run.lower(x, kernel, bias, summand).as_text()
    assert "has_bias = true" in text
    assert "relu = true" in text
    assert "output_operand_alias" in text
    wide = [a.astype(jnp.float32) for a in (x, kernel, bias, summand)]
    found, wanted = run(x, kernel, bias, summand), jax.jit(partial(ended, xla))(*wide)
    _close(found, wanted, 1e-5 if dtype == jnp.float32 else 2e-2)
    _close(summand, wide[3], 0.0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_nan_stays_nan_in_a_chain_that_ends_in_relu(case, dtype, onednn):
    ours, xla, x, kernel, summand = _convolutions(case, dtype)

    def ended(conv, x, kernel, summand):
        return relu(summand + conv(x, kernel)), relu(conv(x, kernel))

    x = x.at[0, 0, 0, 0].set(jnp.nan).at[1, 1, 1, 1].set(jnp.inf)
    summand = summand.at[2, 1, 1, 1].set(jnp.nan)
    run = jax.jit(fuse(partial(ended, ours)))
    assert "relu = true" in run.lower(x, kernel, summand).as_text()
    found = run(x, kernel, summand)
    for ours_, xlas in zip(found, jax.jit(partial(ended, xla))(x, kernel, summand), strict=True):
        assert jnp.isnan(xlas).any()
        assert jnp.isnan(ours_)[jnp.isnan(xlas)].all()
        assert (ours_ == jnp.inf)[xlas == jnp.inf].all()


def test_inference_of_a_network_is_one_call_for_each_convolution(onednn):
    model = resnet_jax.create_model("resnet20", stage_sizes=(1, 1), width=16, num_classes=5)
    variables = resnet_jax.init_variables(model, jax.random.key(0), (16, 16, 3))
    folded = resnet_jax.fold_batch_norm(model, variables, (16, 16, 3))
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    fused = jax.jit(fuse(model.apply)).lower(folded, images)
    assert fused.as_text().count("@resnet_jax_forward") == 5
    assert fused.as_text().count("relu = true") == 5
    found, wanted = fused.compile()(folded, images), jax.jit(model.apply)(variables, images)
    _close(found, wanted, 1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_a_kernel_that_is_reordered_once_gives_the_same_bits(case, dtype, onednn):
    ours, _, x, kernel, summand = _convolutions(case, dtype)

    def ended(kernel, x, summand):
        return relu(summand + ours(x, kernel))

    prepared = Prepared(ended, kernel)
    wanted = jax.jit(fuse(ended))(kernel, x, summand)
    for _ in range(2):
        found = prepared(x, summand)
        assert np.asarray(found).tobytes() == np.asarray(wanted).tobytes()
    program = jax.jit(fuse(ended, packed=True)).lower(kernel, x, summand).as_text()
    assert "@resnet_jax_pack(" in program
    assert "@resnet_jax_forward_packed" in program


@pytest.mark.parametrize("case", [CASES[1], CASES[-1]])
def test_threads_that_call_at_once_have_their_own_results(case, onednn):
    ours, _, x, kernel, grad = _convolutions(case, jnp.float32)
    run, prepared = _both_passes(ours), Prepared(lambda kernel, x: ours(x, kernel), kernel)
    inputs = [x * scale for scale in (1.0, 2.0, 4.0)]  # powers of two change no digit
    wanted = [jax.device_get((run(one, kernel, grad), prepared(one))) for one in inputs]
    wrong = []

    def call(one, expected):
        for _ in range(15):
            found = jax.device_get((run(one, kernel, grad), prepared(one)))
            pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
            wrong.extend(1 for a, b in pairs if a.tobytes() != b.tobytes())

    threads = [
        threading.Thread(target=call, args=pair) for pair in zip(inputs, wanted, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_program_for_several_devices_runs_xlas(onednn):
    ours, _, *args = _convolutions(CASES[0], jnp.float32)
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("data",))
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    whole = jax.NamedSharding(mesh, jax.P())
    run = jax.jit(_both_passes(ours), in_shardings=(sharding, whole, sharding))
    text = run.lower(*args).as_text()
    assert not any(target in text for target in TARGETS)


def test_each_device_of_a_shard_map_runs_onednns_and_the_number_of_devices_changes_no_bit(onednn):
    ours, _, *args = _convolutions(CASES[0], jnp.float32)
    images, kernel, grad = (np.concatenate([a, a]) if i != 1 else a for i, a in enumerate(args))

    def run(devices):
        mesh = jax.sharding.Mesh(jax.devices()[:devices], ("data",))
        half = len(images) // 2

        def in_halves(images, kernel, grad):
            halves = [
                _both_passes(ours)(images[i : i + half], kernel, grad[i : i + half])
                for i in range(0, len(images), half)
            ]
            return jax.tree.map(lambda *parts: jnp.stack(parts), *halves)

        specs = (jax.P("data"), jax.P(), jax.P("data"))
        mapped = jax.shard_map(
            in_halves, mesh=mesh, in_specs=specs, out_specs=jax.P("data"), check_vma=False
        )
        lowered = jax.jit(mapped).lower(images, kernel, grad)
        assert any(target in lowered.as_text() for target in TARGETS)
        return jax.device_get(lowered.compile()(images, kernel, grad))

    for one, two in zip(jax.tree.leaves(run(1)), jax.tree.leaves(run(2)), strict=True):
        assert one.tobytes() == two.tobytes()


# Preset, its fields, image size, whether batch norm uses the batch's statistics, tolerance.
# ResNet-50 amplifies rounding: statistics of 32 values in its last stage take the gradients of
# float32 3.0 % away from float64's with XLA's convolutions, 2.4 % with oneDNN's. With running
# statistics, a single ReLU whose input is nearly zero moves one layer's gradient by 0.9 %.
NETWORKS = {
    "few channels": (
        "resnet20",
        {"width": 4, "shortcut": "B", "stage_sizes": (1, 1)},
        8,
        True,
        2e-3,
    ),
    "small maps": ("resnet18", {"width": 8, "stage_sizes": (1, 1, 1)}, 16, True, 2e-3),
    "dilated": (
        "resnet18",
        {"width": 8, "stage_sizes": (1, 1, 1), "output_stride": 4},
        16,
        True,
        2e-3,
    ),
    "resnet18": ("resnet18", {}, 64, True, 2e-3),
    "resnet50": ("resnet50", {}, 64, False, 2e-2),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.thorough] * (name != "few channels"))
        for name in NETWORKS
    ],
)
def test_gradients_of_networks_are_xlas_at_every_call_on_every_thread(name, onednn, monkeypatch):
    preset, fields, size, training, rtol = NETWORKS[name]
    shape = (size, size, 3)
    model = resnet_jax.create_model(preset, num_classes=5, **fields)
    variables = resnet_jax.init_variables(model, jax.random.key(0), shape)
    images = jax.random.normal(jax.random.key(1), (8, *shape))

    def gradients(params):
        def loss(params):
            logits, _ = model.apply(
                variables | {"params": params}, images, train=training, mutable=["batch_stats"]
            )
            return jnp.square(logits - jnp.arange(5)).sum()

        return jax.grad(loss)(params)

    native = jax.jit(gradients).lower(variables["params"]).compile()
    monkeypatch.setattr(
        "resnet_jax.ops.native.conv.state", lambda: State(None, "", "", built=False)
    )
    wanted = jax.jit(partial(gradients))(variables["params"])
    found = []

    def call():
        found.extend(native(variables["params"]) for _ in range(3))

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    for one in found:
        _close(one, wanted, rtol)


def test_an_export_never_calls_the_library(onednn):
    model = resnet_jax.create_model("resnet20", stage_sizes=(1, 1), width=4, num_classes=5)
    variables = resnet_jax.init_variables(model, jax.random.key(0), (8, 8, 3))
    images = jnp.ones((2, 8, 8, 3))
    apply = jax.jit(lambda images: model.apply(variables, images))
    assert "resnet_jax_forward" in apply.lower(images).as_text()
    apply(images)  # so that it was traced and compiled before
    for platforms in (["cpu"], ["cpu", "cuda", "tpu"]):
        program = jax.export.export(apply, platforms=platforms)(images)
        assert "resnet_jax_forward" not in program.mlir_module()
        assert program.serialize()
        exported = export_program(model, variables, (8, 8, 3), platforms=platforms)
        assert "resnet_jax_forward" not in exported.mlir_module()
    _close(program.call(images), apply(images), 1e-5)
