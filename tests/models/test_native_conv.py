"""oneDNN's convolutions, compiled here, against XLA's; and what happens without them."""

import os
import subprocess
import sys

import pytest

from resnet_jax.errors import ConfigError
from resnet_jax.native.build import build
from tests.cli.mistakes import assert_one_line

# A single device, which the rest of the suite doesn't have.
_PROGRAM = """
import itertools, sys
import jax, jax.numpy as jnp, numpy as np
from jax import lax
from resnet_jax.models.conv import conv2d
from resnet_jax.native.conv import is_loaded

assert is_loaded() and len(jax.devices()) == 1

def close(found, wanted, rtol):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())

cases = [
    # height, width, ci, kernel, co, stride, padding, dilation
    (8, 8, 3, 3, 8, 1, ((1, 1), (1, 1)), 1),
    (9, 7, 16, 3, 32, 2, ((1, 1), (1, 1)), 1),
    (8, 8, 16, 1, 32, 2, ((0, 0), (0, 0)), 1),
    (8, 10, 12, 4, 16, 1, ((2, 1), (2, 1)), 1),
    (9, 9, 8, 3, 8, 1, ((2, 2), (2, 2)), 2),
    (2, 2, 16, 3, 16, 1, ((1, 1), (1, 1)), 1),
]
for (h, w, ci, k, co, s, pad, d), dtype in itertools.product(cases, (jnp.float32, jnp.bfloat16)):
    window = dict(strides=(s, s), padding=pad, dilation=(d, d))
    x = jax.random.normal(jax.random.key(0), (4, h, w, ci), dtype)
    kernel = jax.random.normal(jax.random.key(1), (k, k, ci, co), dtype) / k

    def plain(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (s, s), pad, rhs_dilation=(d, d), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    ours = lambda x, kernel: conv2d(x, kernel, **window)
    text = jax.jit(jax.grad(lambda *a: ours(*a).sum(), (0, 1))).lower(x, kernel).as_text()
    assert "resnet_jax_input_gradient" in text and "resnet_jax_kernel_gradient" in text
    rtol = 1e-5 if dtype == jnp.float32 else 2e-2
    y, back = jax.vjp(ours, x, kernel)
    wide = [a.astype(jnp.float32) for a in (x, kernel)]
    wanted, wanted_back = jax.vjp(plain, *wide)
    g = jax.random.normal(jax.random.key(2), y.shape, dtype)
    close((y, back(g)), (wanted, wanted_back(g.astype(jnp.float32))), rtol)
    if dtype == jnp.float32:
        def energy(conv):
            return lambda x, kernel: jnp.sum(jnp.sin(conv(x, kernel)))
        slope = lambda conv: lambda x, kernel: jnp.sum(jax.grad(energy(conv))(x, kernel) ** 2)
        args = (x, kernel)
        close(jax.grad(slope(ours), (0, 1))(*args), jax.grad(slope(plain), (0, 1))(*args), 1e-4)
        along = lambda conv: jax.jvp(jax.grad(energy(conv), (0, 1)), args, args)[1]
        close(along(ours), along(plain), 1e-4)
stack = jnp.stack([kernel, 2 * kernel]).astype(jnp.float32)
x = x.astype(jnp.float32)
close(jax.vmap(ours, (None, 0))(x, stack), jnp.stack([plain(x, k) for k in stack]), 1e-5)
print("equal")
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    try:
        return build(tmp_path_factory.mktemp("native") / "convolution.so")
    except ConfigError as error:
        pytest.skip(str(error))


def _run(program, **environment):
    variables = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", **environment}
    return subprocess.run(
        [sys.executable, "-c", program],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_results_and_derivatives_of_every_order_are_xlas(library):
    done = _run(_PROGRAM, RESNET_JAX_NATIVE=str(library))
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


@pytest.mark.parametrize("content", [None, b"no library"])
def test_without_a_library_xlas_are_used(content, tmp_path):
    path = tmp_path / "convolution.so"
    if content:
        path.write_bytes(content)
    program = "from resnet_jax.native.conv import is_loaded; print(is_loaded())"
    assert _run(program, RESNET_JAX_NATIVE=str(path)).stdout.strip() == "False"


def test_what_is_missing_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert_one_line(["build"], 78, "There is no C++ compiler: install g++", capsys)
    compiler = tmp_path / "g++"
    compiler.write_text(
        "#!/bin/sh\necho 'fatal error: oneapi/dnnl/dnnl.hpp: No such file' >&2\nexit 1\n"
    )
    compiler.chmod(0o755)
    assert_one_line(["build"], 78, "oneDNN isn't there: install Debian's libdnnl-dev", capsys)
