"""Batch normalisation against float64 NumPy, whole and in groups."""

import jax
import numpy as np
import pytest

from resnet_jax.models.norms import BatchNorm


def _reference(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    mean, var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


@pytest.fixture(scope="module")
def setting():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(8, 3, 3, 4)) * [1, 2, 3, 4] + [0, 1, -5, 20]).astype(np.float32)
    scale, bias = rng.normal(size=(2, 4)).astype(np.float32)
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": np.zeros(4, np.float32), "var": np.ones(4, np.float32)},
    }
    return x, scale, bias, variables


def test_normalises_over_the_whole_batch(setting):
    x, scale, bias, variables = setting
    y, _ = BatchNorm(train=True, update_stats=True).apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(y, _reference(x, scale, bias), rtol=1e-4, atol=1e-4)


def test_groups_are_normalised_on_their_own(setting):
    x, scale, bias, variables = setting
    y = BatchNorm(train=True, group_size=2).apply(variables, x)
    expected = [_reference(x[i : i + 2], scale, bias) for i in range(0, 8, 2)]
    np.testing.assert_allclose(y, np.concatenate(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("group_size", [None, 2, 8])
def test_running_statistics_are_those_of_the_whole_batch(setting, group_size):
    x, _, _, variables = setting
    _, updated = BatchNorm(train=True, update_stats=True, group_size=group_size).apply(
        variables, x, mutable=["batch_stats"]
    )
    stats = updated["batch_stats"]
    x = x.astype(np.float64)
    np.testing.assert_allclose(stats["mean"], 0.1 * x.mean(axis=(0, 1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * x.var(axis=(0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize("group_size", [None, 2])
def test_gradients_are_those_of_finite_differences(setting, group_size):
    """Of a function of the result and of the running statistics, in float64."""
    x, scale, bias, variables = setting
    rng = np.random.default_rng(1)
    weights, of_mean, of_var = (rng.normal(size=size) for size in (x.shape, 4, 4))
    module = BatchNorm(train=True, update_stats=True, group_size=group_size)

    def loss(x, scale, bias):
        params = {"scale": scale, "bias": bias}
        y, updated = module.apply(variables | {"params": params}, x, mutable=["batch_stats"])
        stats = updated["batch_stats"]
        return (y * weights).sum() + stats["mean"] @ of_mean + stats["var"] @ of_var

    def reference(x, scale, bias):
        size = group_size or len(x)
        groups = [_reference(x[i : i + size], scale, bias) for i in range(0, len(x), size)]
        mean, var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
        return (np.concatenate(groups) * weights).sum() + 0.1 * (mean @ of_mean + var @ of_var)

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(x, scale, bias)
    exact = [np.asarray(a, np.float64) for a in (x, scale, bias)]
    for argument, gradient in enumerate(gradients):
        differences = np.zeros_like(exact[argument])
        for place in np.ndindex(differences.shape):
            step = np.zeros_like(differences)
            step[place] = 1e-4
            up, down = (
                reference(*exact[:argument], exact[argument] + sign * step, *exact[argument + 1 :])
                for sign in (1, -1)
            )
            differences[place] = (up - down) / 2e-4
        np.testing.assert_allclose(gradient, differences, rtol=1e-4, atol=1e-4)


def test_inference_uses_the_running_statistics(setting):
    x, scale, bias, variables = setting
    stats = {"mean": np.arange(4.0, dtype=np.float32), "var": np.full(4, 4.0, np.float32)}
    y = BatchNorm().apply(variables | {"batch_stats": stats}, x)
    expected = (x - stats["mean"]) / np.sqrt(4 + 1e-5) * scale + bias
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_a_batch_that_does_not_split_into_groups_is_refused(setting):
    x, _, _, variables = setting
    with pytest.raises(ValueError, match="batch of 8 doesn't split into groups of 3"):
        BatchNorm(train=True, group_size=3).apply(variables, x)
