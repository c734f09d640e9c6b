"""ReLU: values and derivatives are those of `jax.nn.relu`."""

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.ops.activation import relu

X = jnp.array([-2.0, -0.0, 0.0, 1e-30, 3.0])


def test_values_and_derivatives_of_both_modes():
    def twice(function, x):
        return jax.grad(lambda x: (function(x) ** 3).sum())(x)

    for function in (lambda f, x: f(x), lambda f, x: jax.jvp(f, (x,), (x + 1,))[1], twice):
        found, expected = function(relu, X), function(jax.nn.relu, X)
        np.testing.assert_array_equal(found, expected)
    second = jax.jacfwd(lambda x: twice(relu, x))(X)
    np.testing.assert_array_equal(second, jnp.diag(6 * jnp.maximum(X, 0)))


def test_the_program_for_cpus_is_that_of_jax():
    """But for names."""

    def text(function) -> str:
        gradient = jax.grad(lambda x: function(x).sum())
        lines = jax.jit(gradient).lower(X).compile().as_text().splitlines()
        return "\n".join(line.partition(", metadata=")[0] for line in lines if "fusion" in line)

    assert text(relu) == text(jax.nn.relu)
