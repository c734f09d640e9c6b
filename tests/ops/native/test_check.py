"""oneDNN's convolutions of random shapes, and in processes with fewer instructions."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from resnet_jax.logging.metrics_log import read_metrics
from resnet_jax.ops.native.check import check
from resnet_jax.ops.native.library import KINDS, Library, Problem
from tests.runs import ROOT, train


def test_random_problems_are_right(onednn_library):
    result = check(onednn_library, problems=80, seed=1)
    assert result["checked"] + result["refused"] == 80
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
            scale = np.abs(results[0]).max()
            np.testing.assert_allclose(one, results[0], rtol=0, atol=1e-5 * scale)


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


@pytest.mark.thorough
def test_what_onednn_refuses_is_xlas(avx2):
    """As bfloat16 without AVX-512."""
    found = _child(_WITHOUT_BFLOAT16, avx2[0], **avx2[1])
    assert found["oneDNN"].endswith("AVX2")
    assert found["called"] == {"float32": True, "bfloat16": False}


@pytest.mark.thorough
@pytest.mark.parametrize("instructions", ["SSE41", "AVX2", "DEFAULT"])
def test_more_random_problems_are_right(instructions, onednn_library):
    program = (
        "import json, sys; from pathlib import Path; from resnet_jax.ops.native.check import check;"
        "print(json.dumps(check(Path(sys.argv[1]), problems=1500, seed=2)))"
    )
    names = ("DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA")
    result = _child(program, onednn_library, **dict.fromkeys(names, instructions))
    assert result["checked"] > 600
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
