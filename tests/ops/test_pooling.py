"""Pooling pads as PyTorch does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.ops.pooling import average_pool, max_pool, max_pool_by_places


def test_max_pool_pads_like_pytorch():
    """On an even size "SAME" would begin its windows elsewhere."""
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(max_pool(x)[0, :, :, 0], [[5, 7], [13, 15]])


def test_average_pool_counts_only_what_a_block_at_the_edge_has():
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    np.testing.assert_array_equal(average_pool(x, 2)[0, :, :, 0], [[2, 3.5], [6.5, 8]])


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (1, 7, 10, 2), (1, 1, 3, 1)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_by_places_it_is_the_same_maximum_with_the_same_gradient(shape, dtype):
    """Of values that are often equal: the first of them has the gradient."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-3, 3, shape), dtype)
    plain, pull_plain = jax.vjp(max_pool, x)
    y, pull = jax.vjp(max_pool_by_places, x)
    np.testing.assert_array_equal(y, plain)
    dy = jnp.asarray(rng.integers(-8, 8, y.shape), dtype)  # whose sums are exact
    np.testing.assert_array_equal(pull(dy)[0], pull_plain(dy)[0])
    along = jnp.ones_like(x) * jnp.arange(shape[3], dtype=dtype)
    tangents = (jax.jvp(pool, (x,), (along,))[1] for pool in (max_pool_by_places, max_pool))
    np.testing.assert_array_equal(*tangents)



@pytest.mark.parametrize("pool", [max_pool, max_pool_by_places])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_with_64_bits_it_has_the_same_gradient(pool, dtype):
    x = np.random.default_rng(0).normal(size=(2, 7, 8, 3)).astype(np.float32)
    wanted = jax.grad(lambda x: jnp.square(max_pool_by_places(x)).sum())(x)
    with jax.enable_x64(True):
        found = jax.jit(jax.grad(lambda x: jnp.square(pool(x)).sum()))(jnp.asarray(x, dtype))
        assert found.dtype == dtype
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
