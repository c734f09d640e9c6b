"""Schedules, weight decay groups, and SGD against PyTorch's published update rule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_jax.errors import ConfigError
from resnet_jax.train.config import default_config
from resnet_jax.train.optimizer import make_optimizer, make_schedule, parameter_groups


def _schedule(*, batch_size=100, unit=1.0, total_steps=100, **fields):
    config = default_config().schedule
    config.update({"base_lr": 0.1, "reference_batch": 100, **fields})
    return make_schedule(config, batch_size=batch_size, unit=unit, total_steps=total_steps)


def test_cosine_falls_from_the_peak_to_nearly_zero():
    rate = _schedule(name="cosine")
    assert float(rate(0)) == pytest.approx(0.1)
    assert float(rate(50)) == pytest.approx(0.05)
    assert float(rate(99)) == pytest.approx(0.05 * (1 + np.cos(0.99 * np.pi)), rel=1e-4)


def test_steps_fall_at_their_boundaries():
    """The paper's 32k and 48k iterations of 128, in examples."""
    rate = _schedule(
        name="step",
        batch_size=128,
        reference_batch=128,
        boundaries=(32_000 * 128.0, 48_000 * 128.0),
        scales=(1.0, 0.1, 0.01),
    )
    rates = [float(rate(s)) for s in (0, 31_999, 32_000, 47_999, 48_000, 63_999)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)


def test_warm_up_is_linear_and_ends_at_the_peak():
    rate = _schedule(name="constant", warmup=1_000.0)  # ten steps of 100 examples
    np.testing.assert_allclose(
        [float(rate(s)) for s in range(12)],
        [0.1 * min(1, (s + 1) / 11) for s in range(12)],
        rtol=1e-5,
    )


@pytest.mark.parametrize("batch_size", [50, 100, 400])
def test_durations_mean_the_same_at_any_batch_size(batch_size):
    """The rate scales with the batch, and falls after the same number of examples."""
    rate = _schedule(
        name="step", batch_size=batch_size, boundaries=(4_000.0,), scales=(1.0, 0.5), warmup=0.0
    )
    boundary = 4_000 // batch_size
    assert float(rate(boundary - 1)) == pytest.approx(0.1 * batch_size / 100)
    assert float(rate(boundary)) == pytest.approx(0.05 * batch_size / 100)


def test_boundaries_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="one value more"):
        _schedule(name="step", boundaries=(1.0, 2.0), scales=(1.0, 0.1))
    with pytest.raises(ConfigError, match="must rise"):
        _schedule(name="step", boundaries=(2.0, 1.0), scales=(1.0, 0.1, 0.01))
    with pytest.raises(ConfigError, match="Did you mean 'cosine'"):
        _schedule(name="cosin")


def test_a_parameter_in_no_group_is_refused():
    with pytest.raises(ValueError, match="parameter gate/weight is in 0 groups"):
        parameter_groups({"gate": {"weight": jnp.ones(1)}})


PARAMS = {"conv1": {"kernel": jnp.array([1.0, -2.0])}, "bn1": {"scale": jnp.array([3.0])}}
GRADIENTS = [
    {"conv1": {"kernel": jnp.array([0.5, 0.1])}, "bn1": {"scale": jnp.array([-1.0])}},
    {"conv1": {"kernel": jnp.array([-0.2, 0.3])}, "bn1": {"scale": jnp.array([2.0])}},
    {"conv1": {"kernel": jnp.array([0.0, 1.0])}, "bn1": {"scale": jnp.array([0.5])}},
]


def _optimise(**fields):
    config = default_config().optimizer
    config.update(fields)
    optimizer = make_optimizer(config, lambda step: 0.1)
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
    optimizer = make_optimizer(config, lambda step: 1.0)
    updates, _ = optimizer.update(GRADIENTS[0], optimizer.init(PARAMS), PARAMS)
    assert float(optax.tree.norm(updates)) == pytest.approx(0.5)


def test_unknown_decay_and_groups_are_refused():
    with pytest.raises(ConfigError, match="optimizer.decay is 'L1'"):
        _optimise(decay="L1")
    with pytest.raises(ConfigError, match="names 'scale'; parameter groups are kernel, bias, norm"):
        _optimise(decay_exempt=("scale",))
