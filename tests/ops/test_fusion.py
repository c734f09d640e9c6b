"""Fused chains of convolution, bias, sum and ReLU against the same operations one by one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.ops.activation import relu
from resnet_jax.ops.conv import conv2d
from resnet_jax.ops.fusion import fuse

_conv = partial(conv2d, padding=((1, 1), (1, 1)))


def _arrays(dtype=jnp.float32):
    shapes = ((2, 6, 6, 8), (3, 3, 8, 8), (8,), (2, 6, 6, 8))
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(key, s, dtype) for key, s in zip(keys, shapes, strict=True)]


def _wide_bias(x, kernel, bias):
    return (_conv(x, kernel).astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


# A function of image, kernel, bias and summand, and what it ends with.
CHAINS = {
    "convolution": (lambda x, k, b, s: _conv(x, k), None),
    "bias": (lambda x, k, b, s: _conv(x, k) + b, (True, False, False)),
    "bias in float32": (lambda x, k, b, s: _wide_bias(x, k, b), (True, False, False)),
    "sum": (lambda x, k, b, s: s + _conv(x, k), (False, True, False)),
    "relu": (lambda x, k, b, s: relu(_conv(x, k)), (False, False, True)),
    "jax's relu": (lambda x, k, b, s: jax.nn.relu(_conv(x, k) + b), (True, False, True)),
    "all": (lambda x, k, b, s: relu(1.0 * s + 1.0 * (_conv(x, k) + b)), (True, True, True)),
    "of two": (lambda x, k, b, s: relu(_conv(x, k) + _wide_bias(s, k, b)), (True, True, True)),
    "sum before bias": (lambda x, k, b, s: (s + _conv(x, k)) + b, (False, True, False)),
    "relu before sum": (lambda x, k, b, s: s + relu(_conv(x, k)), (False, False, True)),
    "float32 between": (
        lambda x, k, b, s: relu(_conv(x, k).astype(jnp.float32).astype(x.dtype)),
        (False, False, True),
    ),
    "recomputed": (jax.checkpoint(lambda x, k, b, s: relu(_conv(x, k) + b)), (True, False, True)),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_is_one_operation_with_the_same_result(name, dtype):
    chain, ends = CHAINS[name]
    arrays = _arrays(dtype)
    program = str(jax.make_jaxpr(fuse(chain))(*arrays))
    if ends:
        bias, summand, ends_in_relu = ends
        assert f"ends=Ends(bias={bias}, summand={summand}, relu={ends_in_relu})" in program
    else:
        assert "Ends(" not in program
    assert program.count("max") == 0
    exact = jax.jit(chain)(*(a.astype(jnp.float32) for a in arrays))
    found = jax.jit(fuse(chain))(*arrays)
    assert found.dtype == dtype
    rtol = 1e-5 if dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=rtol, atol=4 * rtol)


def test_a_sum_that_stays_float32_is_not_rounded_to_bfloat16():
    def wide(x, kernel, bias):
        return _conv(x, kernel).astype(jnp.float32) + bias

    x, kernel, bias, _ = _arrays(jnp.bfloat16)
    arrays = x, kernel, bias.astype(jnp.float32) / 1000
    found, wanted = jax.jit(fuse(wide))(*arrays), jax.jit(wide)(*arrays)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def test_keyword_arguments_go_to_the_function():
    def chain(x, kernel, *, bias, method):
        return {"conv": _conv, "relu": lambda *a: relu(_conv(*a) + bias)}[method](x, kernel)

    x, kernel, bias, _ = _arrays()
    run = jax.jit(lambda x, kernel, bias: fuse(chain)(x, kernel, bias=bias, method="relu"))
    assert "Ends(bias=True, summand=False, relu=True)" in str(jax.make_jaxpr(run)(x, kernel, bias))
    wanted = chain(x, kernel, bias=bias, method="relu")
    np.testing.assert_allclose(run(x, kernel, bias), wanted, rtol=1e-5, atol=1e-5)


def test_what_is_used_twice_is_computed_once():
    def twice(x, kernel, bias, summand):
        y = _conv(x, kernel)
        z = y + bias
        return relu(z), z.sum(), y

    arrays = _arrays()
    program = str(jax.make_jaxpr(fuse(twice))(*arrays))
    assert program.count("resnet_jax_conv[") == 1
    assert "Ends(" not in program
    for pair in zip(fuse(twice)(*arrays), twice(*arrays), strict=True):
        np.testing.assert_allclose(*pair, rtol=1e-5, atol=1e-4)


def test_other_operations_and_trees_stay():
    def function(tree, images):
        y = jax.lax.fori_loop(0, 2, lambda i, y: relu(_conv(y, tree["kernel"])), images)
        return {"y": jnp.where(y > 1, y, -y), "n": 3.0 * tree["bias"], "same": images}

    x, kernel, bias, _ = _arrays()
    args = {"kernel": kernel, "bias": bias}, x
    found, wanted = jax.jit(fuse(function))(*args), jax.jit(function)(*args)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), found, wanted)


def test_derivatives_and_batches_are_those_of_the_single_operations():
    chain, _ = CHAINS["all"]
    arrays = _arrays()

    def everything(function):
        def energy(*arrays):
            return jnp.sum(jnp.sin(function(*arrays)))

        def slope(*arrays):
            return sum(jnp.sum(g**2) for g in jax.grad(energy, (0, 1, 2, 3))(*arrays))

        stacked = jnp.stack([arrays[1], 2 * arrays[1]])
        return (
            jax.grad(energy, (0, 1, 2, 3))(*arrays),
            jax.grad(slope, (0, 1, 2))(*arrays),
            jax.jvp(function, arrays, arrays),
            jax.vmap(function, (None, 0, None, None))(arrays[0], stacked, *arrays[2:]),
        )

    found, wanted = jax.jit(lambda: everything(fuse(chain)))(), jax.jit(lambda: everything(chain))()
    for pair in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(*pair, rtol=1e-4, atol=1e-3)


def test_an_array_of_another_shape_is_no_summand():
    def function(x, kernel, row):
        return _conv(x, kernel) + row

    x, kernel, *_ = _arrays()
    row = jnp.arange(6.0)[:, None]  # along the width
    program = str(jax.make_jaxpr(fuse(function))(x, kernel, row))
    assert "Ends(bias=True" not in program
    np.testing.assert_allclose(fuse(function)(x, kernel, row), function(x, kernel, row), rtol=1e-5)
