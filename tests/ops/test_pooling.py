"""Pooling pads as PyTorch does."""

from functools import partial
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

import resnet_jax
from resnet_jax.ops import pooling
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


def _of_gradient(function, x, along):
    """The Hessian of a function times a direction, compiled."""
    return jax.jit(lambda x: jax.jvp(jax.grad(function), (x,), (along,))[1])(x)


def _second_order(function, x, along):
    """The same by each mixture of forward and reverse mode."""

    def of_slope(x):
        return jax.grad(lambda x: jax.jvp(function, (x,), (along,))[1])(x)

    def of_projection(x):
        return jax.grad(lambda x: jnp.vdot(jax.grad(function)(x), along))(x)

    products = (jax.jit(product)(x) for product in (of_slope, of_projection))
    return [_of_gradient(function, x, along), *products]


@pytest.mark.parametrize("pool", [max_pool, max_pool_by_places])
def test_it_has_second_derivatives(pool):
    """Every platform's form is differentiated, also that of a GPU on a CPU."""
    x, along = jax.random.normal(jax.random.key(0), (2, 2, 7, 8, 3))

    def loss(x, pool=pool):
        return jnp.sin(pool(x) * 2).sum()

    def plain(x):
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
        return nn.max_pool(padded, (3, 3), strides=(2, 2))

    for found, wanted in zip(
        _second_order(loss, x, along),
        _second_order(lambda x: loss(x, plain), x, along),
        strict=True,
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    mapped = jax.vmap(partial(_of_gradient, loss))(x[:, None], along[:, None])
    np.testing.assert_allclose(mapped[:, 0], _of_gradient(loss, x, along), atol=1e-5)


def test_it_has_second_derivatives_in_shard_map():
    x, along = jax.random.normal(jax.random.key(0), (2, 2, 7, 8, 3))
    product = partial(_of_gradient, lambda x: jnp.sin(max_pool(x)).sum())
    data = PartitionSpec("data")
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    split = jax.shard_map(product, mesh=mesh, in_specs=data, out_specs=data)
    np.testing.assert_allclose(jax.jit(split)(x, along), product(x, along), atol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("activation", ["relu", "silu"])  # pooled before it, and after it
def test_a_network_with_a_pooled_stem_has_second_derivatives(activation, monkeypatch):
    fields = {"stage_sizes": (1, 1), "width": 8, "num_classes": 3, "activation": activation}
    model = resnet_jax.create_model("resnet18", **fields)
    variables = resnet_jax.init_variables(model, jax.random.key(0), (16, 16, 3))
    images = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))
    params, unravel = ravel_pytree(variables["params"])
    along = jax.random.normal(jax.random.key(2), params.shape)

    def loss(params):
        logits, _ = model.apply(
            variables | {"params": unravel(params)}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.square(logits - jnp.arange(3)).sum()

    found = _of_gradient(loss, params, along)
    plain = Mock(side_effect=pooling._plain)
    monkeypatch.setattr(pooling, "max_pool_by_places", plain)
    wanted = _of_gradient(loss, params, along)
    assert plain.called
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("pool", [max_pool, max_pool_by_places])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_with_64_bits_it_has_the_same_gradient(pool, dtype):
    x = np.random.default_rng(0).normal(size=(2, 7, 8, 3)).astype(np.float32)
    wanted = jax.grad(lambda x: jnp.square(max_pool_by_places(x)).sum())(x)
    with jax.enable_x64(True):
        found = jax.jit(jax.grad(lambda x: jnp.square(pool(x)).sum()))(jnp.asarray(x, dtype))
        assert found.dtype == dtype
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
