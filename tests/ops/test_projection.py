"""A projection and its normalisation in one: values and gradients of one after the other."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax
from resnet_jax.ops import batch_norm
from resnet_jax.ops.projection import project_and_normalise


def _both_steps(x, kernel, scale, bias, *, groups):
    """The formula, one group after the other."""
    results = []
    for group in x.reshape(groups, -1, *x.shape[1:]):
        z = group @ kernel
        mean, var = z.mean(axis=(0, 1, 2)), z.var(axis=(0, 1, 2))
        y = (z - mean) / jnp.sqrt(var + 1e-5) * scale + bias
        results.append((y, mean, var))
    y, mean, var = zip(*results, strict=True)
    return jnp.concatenate(y), jnp.stack(mean), jnp.stack(var)


def _arguments(groups, dtype, channels=6, features=24):
    """Those of the function, and cotangents of its results."""
    rng = np.random.default_rng(groups)
    shape = (8, 5, 4)
    common = rng.normal(size=(*shape, 1))  # as channels of a network have
    x = np.maximum(common + rng.normal(size=(*shape, channels)), 0)
    kernel = rng.normal(size=(channels, features)) / channels**0.5
    scale, bias = rng.normal(size=(2, features))
    scale[0] = 0  # as all are where the last scale of a branch begins at zero
    of_moments = rng.normal(size=(2, groups, features))
    narrow = (jnp.asarray(a, dtype) for a in (x, kernel))
    wide = (jnp.asarray(a, jnp.float32) for a in (scale, bias))
    return (*narrow, *wide), (rng.normal(size=(*shape, features)), *of_moments)


def _exact(arguments, cotangents, groups):
    with jax.enable_x64(True):
        exact = [jnp.asarray(np.asarray(a.astype(jnp.float32)), jnp.float64) for a in arguments]
        results, pull = jax.vjp(partial(_both_steps, groups=groups), *exact)
        return [np.asarray(a) for a in (*results, *pull(tuple(map(jnp.asarray, cotangents))))]


def _computed(arguments, cotangents, groups):
    dtype = arguments[0].dtype

    @jax.jit
    def run(*arguments):
        together = partial(project_and_normalise, groups=groups, epsilon=1e-5, dtype=dtype)
        results, pull = jax.vjp(together, *arguments)
        given = [jnp.asarray(c, r.dtype) for c, r in zip(cotangents, results, strict=True)]
        return (*results, *pull(tuple(given)))

    return run(*arguments)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 3e-6), (jnp.bfloat16, 2.0**-7)])
def test_results_and_gradients_are_those_of_the_formula(groups, dtype, tolerance):
    arguments, cotangents = _arguments(groups, dtype)
    computed = _computed(arguments, cotangents, groups)
    exact = _exact(arguments, cotangents, groups)
    assert [a.shape for a in computed] == [e.shape for e in exact]
    assert computed[0].dtype == computed[3].dtype == computed[4].dtype == dtype
    for actual, expected in zip(computed, exact, strict=True):
        worst = np.abs(np.asarray(actual, np.float64) - expected).max()
        assert worst <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("groups", [1, 2])
def test_forward_mode_is_the_formulas(groups):
    arguments, _ = _arguments(groups, jnp.float32)
    together = partial(project_and_normalise, groups=groups, epsilon=1e-5, dtype=jnp.float32)
    apart = partial(_both_steps, groups=groups)
    directions = tuple(jnp.cos(a) for a in arguments)
    found, wanted = (jax.jvp(f, arguments, directions)[1] for f in (together, apart))
    for actual, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


def test_the_backward_pass_keeps_nothing_of_the_products_size():
    arguments, _ = _arguments(1, jnp.float32)
    together = partial(project_and_normalise, groups=1, epsilon=1e-5, dtype=jnp.float32)
    kept = jax.eval_shape(lambda *a: jax.vjp(together, *a)[1], *arguments)
    x, kernel = arguments[:2]
    assert max(leaf.size for leaf in jax.tree.leaves(kept)) == x.size
    assert x.size < x.size // len(kernel) * kernel.shape[1]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("platform", "group_size", "activation"),
    [("tpu", None, "silu"), ("tpu", 4, "silu"), ("cuda", None, "silu"), ("cuda", None, "relu")],
)
def test_a_network_trains_alike_on_each_platform(platform, group_size, activation, monkeypatch):
    fields = {"width": 4, "stage_sizes": (1, 2), "activation": activation, "num_classes": 3}
    model = resnet_jax.create_model("resnet50", bn_group_size=group_size, **fields)
    variables = resnet_jax.init_variables(model, jax.random.key(0), (32, 32, 3))
    images = jax.random.normal(jax.random.key(1), (8, 32, 32, 3))

    def train():
        def loss(params):
            logits, updated = model.apply(
                variables | {"params": params}, images, train=True, mutable=["batch_stats"]
            )
            return jnp.square(logits - jnp.arange(3)).sum(), updated

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])

    apart = train()
    choose = jax.lax.platform_dependent
    calls = []

    def as_there(*operands, **functions):
        if platform not in functions:
            return choose(*operands, **functions)
        if "tpu" in functions:
            calls.append(functions[platform])
        return functions[platform](*operands)

    monkeypatch.setattr(batch_norm.jax.lax, "platform_dependent", as_there)
    together = train()
    assert len(calls) == 5  # the last of each branch, and both shortcuts
    for actual, expected in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(actual, expected, atol=3e-5 * np.abs(expected).max() + 1e-7)
