"""A GPU's normalised convolution: values and gradients of one after the other."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.ops.projection_gpu import convolve_normalised
from tests.ops.test_projection import _arguments, _both_steps, _exact

EPSILON = 1e-5


GROUPS = pytest.mark.parametrize("groups", [1, 2])


@GROUPS
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 3e-6), (jnp.bfloat16, 2.0**-6)])
def test_results_and_gradients_are_those_of_the_formula(dtype, tolerance, groups):
    arguments, cotangents = _arguments(groups, dtype)

    @jax.jit
    def run(*arguments):
        together = partial(convolve_normalised, groups=groups, epsilon=EPSILON)
        results, pull = jax.vjp(together, *arguments)
        given = [jnp.asarray(c, r.dtype) for c, r in zip(cotangents, results, strict=True)]
        return (*results, *pull(tuple(given)))

    for actual, expected in zip(
        run(*arguments), _exact(arguments, cotangents, groups), strict=True
    ):
        assert actual.shape == expected.shape
        worst = np.abs(np.asarray(actual, np.float64) - expected).max()
        assert worst <= tolerance * np.abs(expected).max()


@GROUPS
def test_in_float64_they_are_the_same(groups):
    arguments, cotangents = _arguments(groups, jnp.float32)
    exact = _exact(arguments, cotangents, groups)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a), jnp.float64) for a in arguments]
        together = partial(convolve_normalised, groups=groups, epsilon=EPSILON)
        results, pull = jax.vjp(together, *wide)
        computed = (
            *results,
            *pull(tuple(jnp.asarray(c, r.dtype) for c, r in zip(cotangents, results, strict=True))),
        )
        assert all(a.dtype == jnp.float64 for a in computed)
        for actual, expected in zip(computed, exact, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("dtype", "exact"), [(jnp.float32, 3), (jnp.bfloat16, 2)])
def test_products_that_give_statistics_are_exact(dtype, exact):
    """On a GPU: by default, it rounds float32 to TF32. Products of bfloat16 are exact anyway."""
    arguments, _ = _arguments(1, dtype)
    together = jax.jit(partial(convolve_normalised, groups=1, epsilon=EPSILON))
    program = together.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert len(products) == 3  # the moments of x, and of them those of z
    assert sum("precision = [HIGHEST, HIGHEST]" in line for line in products) == exact


@GROUPS
def test_forward_mode_is_the_formulas(groups):
    arguments, _ = _arguments(groups, jnp.float32)
    directions = tuple(jnp.cos(a) for a in arguments)
    together = partial(convolve_normalised, groups=groups, epsilon=EPSILON)
    found = jax.jvp(together, arguments, directions)[1]
    expected = jax.jvp(partial(_both_steps, groups=groups), arguments, directions)[1]
    for actual, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(actual, other, rtol=1e-3, atol=1e-4)
