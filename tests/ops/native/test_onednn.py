"""oneDNN's convolutions against XLA's, in this process and in others with fewer instructions."""

import json
import os
import subprocess
import sys
import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import resnet_jax
from resnet_jax.inference.export import export_program
from resnet_jax.logging.metrics_log import read_metrics
from resnet_jax.ops.activation import relu
from resnet_jax.ops.conv import conv2d
from resnet_jax.ops.fusion import fuse
from resnet_jax.ops.native.check import check
from resnet_jax.ops.native.library import KINDS, Library, Problem, State
from tests.runs import ROOT, train

# height, width, ci, kernel, co, stride, padding, dilation
CASES = [
    (8, 8, 3, 3, 8, 1, ((1, 1), (1, 1)), 1),
    (9, 7, 16, 3, 32, 2, ((1, 1), (1, 1)), 1),
    (8, 8, 16, 1, 32, 2, ((0, 0), (0, 0)), 1),
    (8, 10, 12, 4, 16, 1, ((2, 1), (2, 1)), 1),
    (9, 9, 8, 3, 8, 1, ((2, 2), (2, 2)), 2),
    (2, 2, 16, 3, 16, 1, ((1, 1), (1, 1)), 1),
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


def test_random_problems_are_right(onednn_library):
    result = check(onednn_library, seconds=3.0, seed=1)
    assert result["checked"]
    assert result["wrong"] == []


@pytest.mark.parametrize("images", [1, 3, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_parts_for_several_threads_make_the_whole(kind, images, onednn_library):
    library = Library(onednn_library)
    rng = np.random.default_rng(0)
    for size, taps, stride, padding, dilation in [
        (16, 3, 1, ((1, 1), (1, 1)), 1),
        (17, 3, 2, ((1, 1), (1, 1)), 1),
        (15, 4, 1, ((2, 1), (0, 3)), 1),
        (16, 3, 1, ((4, 4), (4, 4)), 4),
        (14, 1, 2, ((0, 0), (0, 0)), 1),
    ]:
        made = [(size + sum(pad) - dilation * (taps - 1) - 1) // stride + 1 for pad in padding]
        shapes = ((images, size, size, 32), (taps, taps, 32, 48), (images, *made, 48))
        problem = Problem(kind, False, shapes, (stride, stride), padding, (dilation, dilation))
        if kind == "forward":
            problem = problem._replace(has_bias=True, has_sum=True, relu=True)
        arrays = [rng.normal(size=shape).astype(np.float32) for shape in (*shapes, (48,))]
        results = []
        for threads in (0, 1, 2, 3, 7, 64):
            given = [array.copy() for array in arrays]
            assert library.attempt(problem, *given, threads=threads)
            results.append(given[problem.place])
        for one in results[1:]:
            _close(one, results[0], 1e-5)


def test_kernels_known_to_be_wrong_are_refused(onednn_library):
    library = Library(onednn_library)
    pointwise = Problem(
        "kernel_gradient",
        False,
        ((8, 8, 8, 4), (1, 1, 4, 8), (8, 4, 4, 8)),
        (2, 2),
        ((0, 0), (0, 0)),
        (1, 1),
    )
    assert not library.supports(pointwise)
    assert library.supports(pointwise._replace(kind="forward"))
    wider = ((8, 8, 8, 64), (1, 1, 64, 8), (8, 4, 4, 8))
    assert library.supports(pointwise._replace(shapes=wider))
    strided = Problem(
        "kernel_gradient",
        True,
        ((4, 1, 1, 64), (3, 3, 64, 64), (4, 1, 1, 64)),  # only the central tap meets the image
        (2, 2),
        ((1, 1), (1, 1)),
        (1, 1),
    )
    assert not library.supports(strided)
    assert library.supports(strided._replace(bfloat16=False))


def _child(program, library, **environment):
    variables = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"} | environment
    done = subprocess.run(
        [sys.executable, "-c", program, str(library)],
        env=variables | {"RESNET_JAX_NATIVE": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


_WITHOUT_BFLOAT16 = """
import json, sys
from pathlib import Path
import jax, jax.numpy as jnp
from resnet_jax.ops.activation import relu
from resnet_jax.ops.conv import conv2d
from resnet_jax.ops.fusion import fuse
from resnet_jax.ops.native.build import certify

checked = certify(Path(sys.argv[1]), check_s=2.0)
called = {}
for dtype in ("float32", "bfloat16"):
    x, kernel = jnp.ones((2, 8, 8, 16), dtype), jnp.ones((3, 3, 16, 16), dtype)
    run = jax.jit(jax.grad(lambda *a: conv2d(*a, padding=((1, 1), (1, 1))).sum(), (0, 1)))
    called[dtype] = "resnet_jax_kernel_gradient" in run.lower(x, kernel).as_text()
    assert float(run(x, kernel)[1][1, 1, 0, 0]) == 128
print(json.dumps({"oneDNN": checked["oneDNN"], "called": called}))
"""


@pytest.fixture
def avx2(onednn_library, tmp_path):
    """The library in another place, to be checked with fewer instructions; the environment."""
    copy = tmp_path / onednn_library.name
    copy.write_bytes(onednn_library.read_bytes())
    return copy, {"DNNL_MAX_CPU_ISA": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def test_what_onednn_refuses_is_xlas(avx2):
    """As bfloat16 without AVX-512."""
    found = _child(_WITHOUT_BFLOAT16, avx2[0], **avx2[1])
    assert found["oneDNN"].endswith("AVX2")
    assert found["called"] == {"float32": True, "bfloat16": False}


@pytest.mark.thorough
@pytest.mark.parametrize("instructions", ["SSE41", "AVX2", "DEFAULT"])
@pytest.mark.parametrize("seed", [2, 3])
def test_more_random_problems_are_right(instructions, seed, onednn_library):
    program = (
        "import json, sys; from pathlib import Path; from resnet_jax.ops.native.check import check;"
        f"print(json.dumps(check(Path(sys.argv[1]), seconds=60, seed={seed})))"
    )
    names = ("DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA")
    result = _child(program, onednn_library, **dict.fromkeys(names, instructions))
    assert result["checked"] > 50
    assert result["wrong"] == []


@pytest.mark.thorough
def test_digits_are_trained_by_it(onednn_library, tmp_path):
    environment = {"RESNET_JAX_NATIVE": str(onednn_library)}
    ended = train(tmp_path / "run", "--config.ema_decay=0", environment=environment)
    assert ended.code == 0, ended.said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["convolutions"][0].startswith("oneDNN")


_CERTIFY = """
import json, sys
from pathlib import Path
from resnet_jax.ops.native.build import certify
print(json.dumps(certify(Path(sys.argv[1]))))
"""


@pytest.mark.thorough
def test_digits_learn_on_avx2(avx2, tmp_path):
    path, environment = avx2
    version = _child(_CERTIFY, path, **environment)["oneDNN"]
    command = [sys.executable, "train.py", "--config=configs/digits.py", "--config.duration=3.0"]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path / 'run'}"],
        cwd=ROOT,
        env=os.environ | environment | {"RESNET_JAX_NATIVE": str(path), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["convolutions"] == [f"oneDNN {version.split()[0]} (AVX2)"]
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    losses = [record["loss"] for record in records if record["split"] == "train"]
    assert losses[-1] < losses[0] / 2
