"""Initial values against JAX's own initialisers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.models.initializers import CLASSIFIER_STD, gaussian, he_normal


@pytest.mark.parametrize("shape", [(3, 3, 5, 7), (1, 1, 300, 400)])
def test_initial_values_are_those_of_jax(shape):
    """Drawn in other sizes, but the same numbers; JAX's own initialiser is the reference."""
    key = jax.random.key(3)
    reference = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    np.testing.assert_allclose(he_normal(key, shape), reference(key, shape), rtol=1e-6)
    assert he_normal(key, shape, jnp.bfloat16).dtype == jnp.bfloat16
    normal = jax.nn.initializers.normal(0.01)
    np.testing.assert_allclose(
        gaussian(CLASSIFIER_STD)(key, (64, 9)), normal(key, (64, 9)), rtol=1e-6
    )
