"""Functions with a backward pass of their own, in forward mode, mapped and split over devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import resnet_jax
from resnet_jax.ops.derivatives import differentiable


def _scaled(x, bias, power):
    return jnp.sin(x) ** power + (0 if bias is None else bias), x.sum()


def _forward(x, bias, power):
    return _scaled(x, bias, power), (x, bias)


def _backward(power, kept, cotangents):
    """That of `_scaled`, times 1 + 1e-3, so that it can be told from what JAX derives."""
    x, bias = kept
    dy, dsum = cotangents
    slope = power * jnp.sin(x) ** (power - 1) * jnp.cos(x)
    dbias = None if bias is None else 1.001 * dy.sum(0)
    return 1.001 * (dy * slope + dsum), dbias


ours = differentiable(_scaled, _forward, _backward, static=1)
X = jax.random.normal(jax.random.key(0), (4, 3))
BIAS = jnp.arange(3.0)


def _loss(function, x, bias):
    y, total = function(x, bias, 2)
    return jnp.sum(y**2) + total


def _close(found, wanted, factor=1.0):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, factor * b, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("jit", [True, False])
def test_the_backward_pass_is_the_given_one_and_forward_mode_is_jaxs(jit):
    wrap = jax.jit if jit else lambda function: function
    gradient = partial(jax.grad(_loss, (1, 2)))
    _close(wrap(partial(gradient, ours))(X, BIAS), gradient(_scaled, X, BIAS), 1.001)
    along = wrap(lambda x, bias: jax.jvp(partial(_loss, ours), (x, bias), (bias + x, bias))[1])
    _close(along(X, BIAS), jax.jvp(partial(_loss, _scaled), (X, BIAS), (BIAS + X, BIAS))[1])
    jacobian = wrap(jax.jacfwd(lambda x: ours(x, None, 3)))(X)
    _close(jacobian, jax.jacfwd(lambda x: _scaled(x, None, 3))(X))


def test_without_compilation():
    with jax.disable_jit():
        found = jax.grad(partial(_loss, ours))(X, BIAS)
    _close(found, jax.grad(partial(_loss, _scaled))(X, BIAS), 1.001)


def test_higher_orders():
    loss = partial(_loss, ours)
    hessian = jax.jit(jax.hessian(partial(_loss, _scaled)))(X, BIAS)
    for second, rtol in (
        (jax.jacfwd(jax.grad(loss)), 3e-3),
        (jax.hessian(loss), 3e-3),
        (jax.jacrev(jax.grad(loss)), 5e-3),
        (jax.jacrev(jax.jacfwd(loss)), 3e-3),
    ):
        np.testing.assert_allclose(jax.jit(second)(X, BIAS), hessian, rtol=rtol, atol=1e-5)


def test_derivatives_under_vmap():
    stack, biases = jnp.stack([X, 2 * X]), jnp.stack([BIAS, -BIAS])
    for axes in ((0, 0), (0, None), (None, 0)):
        args = tuple(
            a if axis == 0 else a[0] for a, axis in zip((stack, biases), axes, strict=True)
        )

        def total(function, *args, axes=axes):
            return jax.vmap(partial(_loss, function), axes)(*args).sum()

        def each(function, *args, axes=axes):
            return jax.vmap(jax.grad(partial(_loss, function), (0, 1)), axes)(*args)

        _close(jax.grad(total, (1, 2))(ours, *args), jax.grad(total, (1, 2))(_scaled, *args), 1.001)
        _close(each(ours, *args), each(_scaled, *args), 1.001)


NETWORKS = {
    "bottleneck": ("resnet50", {"bn_group_size": 2}),
    "scanned": ("resnet20", {"stage_sizes": (2, 2), "scan": True, "remat": True}),
}


@pytest.fixture(params=["bottleneck", pytest.param("scanned", marks=pytest.mark.thorough)])
def network(request):
    """The loss of a network, as a function of its parameters and of images; both of these."""
    name, fields = NETWORKS[request.param]
    fields = {"stage_sizes": (1,), "width": 4, "num_classes": 3, "activation": "silu"} | fields
    model = resnet_jax.create_model(name, **fields)
    variables = resnet_jax.init_variables(model, jax.random.key(0), (8, 8, 3))

    def loss(params, images):
        logits, _ = model.apply(
            variables | {"params": params}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.square(logits - jnp.arange(3)).sum()

    return loss, variables["params"], jax.random.normal(jax.random.key(1), (8, 8, 8, 3))


def test_networks_have_derivatives_in_forward_mode(network):
    loss, params, images = network
    keys = jax.random.split(jax.random.key(2), 100)
    direction = jax.tree.map(
        lambda leaf, i: jax.random.normal(keys[i], leaf.shape),
        params,
        jax.tree.unflatten(jax.tree.structure(params), range(len(jax.tree.leaves(params)))),
    )

    @jax.jit
    def both(params, direction):
        along = jax.jvp(lambda params: loss(params, images), (params,), (direction,))[1]
        gradient = jax.grad(loss)(params, images)
        return along, sum(map(jnp.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))

    along, projected = both(params, direction)
    np.testing.assert_allclose(along, projected, rtol=1e-4)


@pytest.mark.thorough
def test_gradients_of_networks_in_shard_map_are_summed(network):
    loss, params, images = network
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    split = jax.shard_map(
        jax.value_and_grad(lambda params, images: jax.lax.psum(loss(params, images), "data")),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("data")),
        out_specs=PartitionSpec(),
    )

    def apart(params, images):
        return loss(params, images[:4]) + loss(params, images[4:])

    found = jax.jit(split)(params, images)
    wanted = jax.jit(jax.value_and_grad(apart))(params, images)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max() + 1e-6)
