"""Batch normalisation in one with pooling: results and gradients of one after the other."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax
from resnet_jax.ops.batch_norm import MaxPooled, batch_normalise
from resnet_jax.ops.pooling import max_pool


@pytest.mark.parametrize("group_size", [None, 2])
def test_pooling_before_normalisation_is_pooling_after_it(group_size):
    """Scales of both signs; statistics and gradients too."""
    rng = np.random.default_rng(2)
    x = (rng.normal(size=(4, 7, 6, 4)) * [1, 2, 3, 4] + [0, 1, -5, 20]).astype(np.float32)
    weights = rng.normal(size=(4, 4, 3, 4)).astype(np.float32)
    params = {"scale": np.array([1, -2, 0.5, -1], np.float32), "bias": np.ones(4, np.float32)}
    groups = len(x) // (group_size or len(x))

    def loss(x, params, *, first):
        maps = MaxPooled(x) if first else x
        y, *moments = batch_normalise(
            maps, **params, groups=groups, epsilon=1e-5, dtype=jnp.dtype("float32")
        )
        y = y if first else max_pool(y)
        return (y * weights).sum() + sum(jnp.sin(m).sum() for m in moments), (y, moments)

    def run(*, first):
        of = jax.value_and_grad(partial(loss, first=first), argnums=(0, 1), has_aux=True)
        return jax.jit(of)(x, params)

    (_, results), gradients = run(first=True)
    (_, expected), expected_gradients = run(first=False)
    np.testing.assert_array_equal(results[0], expected[0])
    for actual, other in zip(
        jax.tree.leaves((results, gradients)),
        jax.tree.leaves((expected, expected_gradients)),
        strict=True,
    ):
        np.testing.assert_allclose(actual, other, rtol=1e-5, atol=3e-5)


@pytest.mark.thorough
def test_a_network_of_float64_trains_with_the_statistics_of_a_batch():
    """Each platform's form of a normalised product has moments of one type."""
    fields = {"stage_sizes": (1, 1), "width": 4, "num_classes": 3}
    narrow = resnet_jax.create_model("resnet50", **fields)
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    initial = resnet_jax.init_variables(narrow, jax.random.key(0), images.shape[1:])
    initial = jax.tree.map(np.asarray, initial)

    def train(model, dtype):
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), dict(initial))

        def loss(params):
            logits, _ = model.apply(
                variables | {"params": params},
                jnp.asarray(images, dtype),
                train=True,
                mutable=["batch_stats"],
            )
            return jnp.square(logits - jnp.arange(3)).sum()

        return jax.jit(jax.value_and_grad(loss))(variables["params"])

    wanted = train(narrow, jnp.float32)
    with jax.enable_x64(True):
        model = narrow.copy(dtype=jnp.dtype("float64"), param_dtype=jnp.dtype("float64"))
        found = train(model, jnp.float64)
        for actual, expected in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())
