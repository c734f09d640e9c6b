"""Optimisers against the formulas of their papers, in NumPy and float64; weight decay groups."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_jax.config.schema import default_config
from resnet_jax.errors import ConfigError
from resnet_jax.models.surgery import stack_units
from resnet_jax.train.optimizer import OptimizerConfig, make_optimizer
from resnet_jax.train.param_groups import parameter_groups


def test_a_parameter_in_no_group_is_refused():
    with pytest.raises(ConfigError, match="The parameter gate/weight is in no group.* Name it ker"):
        parameter_groups({"gate": {"weight": jnp.ones(1)}})


def test_a_parameter_is_grouped_by_its_name_and_its_neighbours():
    one = jnp.ones(1)
    params = {
        "conv": {"kernel": one, "bias": one},
        "norm": {"scale": one, "bias": one},
        "shift": {"bias": one},
        "block": {"mine": {"kernel": one}},
    }
    assert parameter_groups(params) == {
        "conv": {"kernel": "kernel", "bias": "bias"},
        "norm": {"scale": "norm", "bias": "norm"},
        "shift": {"bias": "norm"},
        "block": {"mine": {"kernel": "kernel"}},
    }


PARAMS = {"conv1": {"kernel": jnp.array([1.0, -2.0])}, "bn1": {"scale": jnp.array([3.0])}}
GRADIENTS = [
    {"conv1": {"kernel": jnp.array([0.5, 0.1])}, "bn1": {"scale": jnp.array([-1.0])}},
    {"conv1": {"kernel": jnp.array([-0.2, 0.3])}, "bn1": {"scale": jnp.array([2.0])}},
    {"conv1": {"kernel": jnp.array([0.0, 1.0])}, "bn1": {"scale": jnp.array([0.5])}},
]


def _optimise(**fields):
    config = default_config().optimizer
    config.update(fields)
    optimizer = make_optimizer(OptimizerConfig(**config), lambda step: 0.1)
    params, state = PARAMS, optimizer.init(PARAMS)
    for gradients in GRADIENTS:
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return jax.tree.leaves(params)


def _pytorch_sgd(p, gradients, *, momentum, nesterov, decay, decoupled=False):
    """torch.optim.SGD's documented algorithm, in NumPy; decoupled decay as in AdamW's."""
    buffer = None
    for gradient in gradients:
        g = np.asarray(gradient, np.float64) + (0.0 if decoupled else decay * p)
        buffer = g if buffer is None else momentum * buffer + g
        step = g + momentum * buffer if nesterov else buffer
        p = p - 0.1 * (step + decay * p if decoupled else step)
    return p


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", ["l2", "decoupled"])
@pytest.mark.parametrize("exempt", [(), ("norm",)])
def test_sgd_equals_pytorchs_rule(nesterov, decay, exempt):
    ours = _optimise(
        momentum=0.9, nesterov=nesterov, weight_decay=0.1, decay=decay, decay_exempt=exempt
    )
    for leaf, group, p, *gradients in zip(
        ours, ("norm", "kernel"), *map(jax.tree.leaves, [PARAMS, *GRADIENTS]), strict=True
    ):
        expected = _pytorch_sgd(
            np.asarray(p, np.float64),
            gradients,
            momentum=0.9,
            nesterov=nesterov,
            decay=0.0 if group in exempt else 0.1,
            decoupled=decay == "decoupled",
        )
        np.testing.assert_allclose(leaf, expected, rtol=1e-5)


def test_clipping_bounds_the_global_norm():
    config = default_config().optimizer
    config.update({"clip_norm": 0.5, "weight_decay": 0.0})
    optimizer = make_optimizer(OptimizerConfig(**config), lambda step: 1.0)
    updates, _ = optimizer.update(GRADIENTS[0], optimizer.init(PARAMS), PARAMS)
    assert float(optax.tree.norm(updates)) == pytest.approx(0.5)


def test_unknown_decay_and_groups_are_refused():
    with pytest.raises(ConfigError, match="optimizer.decay is 'L1'"):
        _optimise(decay="L1")
    with pytest.raises(ConfigError, match="names 'scale'; parameter groups are kernel, bias, norm"):
        _optimise(decay_exempt=("scale",))


# --- others than SGD ------------------------------------------------------------------------------

NAMES = ("lars", "lamb", "adamw", "muon")
RATES = (0.1, 0.3, 0.2)


def _config(name, **fields):
    config = default_config().optimizer
    decay = {"decay": "l2" if name in ("sgd", "lars") else "decoupled"}
    config.update({"name": name, "weight_decay": 0.05, "epsilon": 1e-6, **decay, **fields})
    return OptimizerConfig(**config)


def _random_tree(seed, shapes):
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: random.normal(size=shape).astype(np.float32),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


SHAPES = {
    "conv1": {"kernel": (3, 3, 2, 5)},
    "bn1": {"scale": (5,), "bias": (5,)},
    "fc": {"kernel": (5, 4), "bias": (4,)},
}
WEIGHTS, *SLOPES = [_random_tree(seed, SHAPES) for seed in range(4)]


def _steps(config, params=WEIGHTS, gradients=SLOPES):
    optimizer = make_optimizer(config, lambda step: jnp.asarray(RATES)[step])
    state = optimizer.init(params)
    for slopes in gradients:
        updates, state = optimizer.update(slopes, state, params)
        params = optax.apply_updates(params, updates)
    return params


def _lars(w, gradients, *, exempt):
    """You et al. 2017, algorithm 1, with the trust ratio of equation 6."""
    v = np.zeros_like(w)
    for g, rate in zip(gradients, RATES, strict=True):
        decay = 0.0 if exempt else 0.05
        size, slope = np.linalg.norm(w), np.linalg.norm(g)
        trust = 1.0 if exempt else 0.02 * size / (slope + decay * size)
        v = 0.9 * v + rate * trust * (g + decay * w)
        w = w - v
    return w


def _adam(w, gradients, *, exempt, lamb=False):
    """Loshchilov & Hutter 2017, algorithm 2, and You et al. 2019, algorithm 2."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, (g, rate) in enumerate(zip(gradients, RATES, strict=True), start=1):
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-6)
        step += 0.0 if exempt else 0.05 * w
        if lamb and not exempt:
            step *= np.linalg.norm(w) / np.linalg.norm(step)
        w = w - rate * step
    return w


def _lamb(w, gradients, *, exempt):
    return _adam(w, gradients, exempt=exempt, lamb=True)


def _muon(w, gradients, *, exempt):
    """Jordan's five Newton-Schulz iterations, with the size of Liu et al. 2025."""
    if w.ndim < 4:
        return _adam(w, gradients, exempt=exempt)
    m = np.zeros_like(w)
    for g, rate in zip(gradients, RATES, strict=True):
        m = 0.9 * m + 0.1 * g
        x = m.reshape(-1, w.shape[-1]).T
        x = x / np.linalg.norm(x)
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        step = 0.2 * np.sqrt(max(x.shape)) * x.T.reshape(w.shape)
        w = w - rate * (step + (0.0 if exempt else 0.05 * w))
    return w


@pytest.mark.parametrize("exempt", [(), ("norm", "bias")])
@pytest.mark.parametrize("rule", [_lars, _lamb, _adam, _muon])
def test_three_steps_equal_those_of_the_papers(rule, exempt):
    name = {_adam: "adamw"}.get(rule, rule.__name__[1:])
    ours = _steps(_config(name, decay_exempt=exempt, beta2=0.99, trust_coefficient=0.02))
    for leaf, group, *arrays in zip(
        *map(jax.tree.leaves, (ours, parameter_groups(WEIGHTS), WEIGHTS, *SLOPES)), strict=True
    ):
        w, *gradients = (np.asarray(array, np.float64) for array in arrays)
        expected = rule(w, gradients, exempt=group in exempt)
        np.testing.assert_allclose(leaf, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_parameters_and_gradients_of_zero_have_a_finite_step(name):
    """A classifier's kernel may begin at zero, and must leave it."""
    zero = jax.tree.map(np.zeros_like, WEIGHTS)
    after = _steps(_config(name), zero)
    assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(after))
    after = _steps(_config(name), WEIGHTS, [zero])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))


@pytest.mark.parametrize("name", NAMES)
def test_stacked_units_are_layers_of_their_own(name):
    shapes = {f"layer1_{unit}": {"conv1": {"kernel": (3, 3, 2, 4)}} for unit in range(3)}
    weights, *gradients = [_random_tree(seed, shapes) for seed in range(4)]
    weights["layer1_2"] = jax.tree.map(lambda w: 10 * w, weights["layer1_2"])
    stacked = _steps(_config(name), stack_units(weights), [stack_units(g) for g in gradients])
    expected = stack_units(_steps(_config(name), weights, gradients))
    for leaf, wanted in zip(jax.tree.leaves(stacked), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_clipping_comes_before_the_optimiser(name):
    clipped = _steps(_config(name, clip_norm=0.5))
    by_hand = [optax.tree.scale(0.5 / optax.tree.norm(g), g) for g in SLOPES]
    expected = _steps(_config(name), WEIGHTS, by_hand)
    for leaf, wanted in zip(jax.tree.leaves(clipped), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_classifier_alone_has_state_if_it_alone_is_trained(name):
    optimizer = make_optimizer(_config(name, trainable="head"), lambda step: 0.1)
    state = optimizer.init(WEIGHTS)
    assert all(leaf.shape != (5,) and leaf.ndim < 4 for leaf in jax.tree.leaves(state))
    updates, _ = optimizer.update(SLOPES[0], state, WEIGHTS)
    assert not np.any(updates["conv1"]["kernel"])
    assert not np.any(updates["bn1"]["scale"])
    assert np.all(updates["fc"]["kernel"])


@pytest.mark.parametrize("name", NAMES)
def test_rates_fall_with_the_distance_from_the_classifier(name):
    def first_step(layer_decay):
        optimizer = make_optimizer(_config(name, layer_decay=layer_decay), lambda step: 0.1)
        return optimizer.update(SLOPES[0], optimizer.init(WEIGHTS), WEIGHTS)[0]

    slow, base = first_step(0.5), first_step(1.0)
    np.testing.assert_allclose(slow["conv1"]["kernel"], 0.5 * base["conv1"]["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(slow["fc"]["kernel"], base["fc"]["kernel"])


@pytest.mark.parametrize("name", NAMES)
def test_all_but_kernels_can_have_a_rate_of_their_own(name):
    def first_step(scalar_rate):
        optimizer = make_optimizer(_config(name, scalar_rate=scalar_rate), lambda step: 0.1)
        return optimizer.update(SLOPES[0], optimizer.init(WEIGHTS), WEIGHTS)[0]

    slow, base = first_step(0.1), first_step(1.0)
    np.testing.assert_allclose(slow["bn1"]["scale"], 0.1 * base["bn1"]["scale"], rtol=1e-6)
    np.testing.assert_array_equal(slow["fc"]["kernel"], base["fc"]["kernel"])


def test_unknown_names_and_decays_that_an_optimiser_lacks_are_refused():
    with pytest.raises(ConfigError, match="optimizer.name is 'lasr'.*Did you mean 'lars'"):
        _steps(_config("lasr"))
    with pytest.raises(ConfigError, match="decay is 'l2'; that of lamb is 'decoupled'"):
        _steps(_config("lamb", decay="l2"))
    with pytest.raises(ConfigError, match="decay is 'decoupled'; that of lars is 'l2'"):
        _steps(_config("lars", decay="decoupled"))
