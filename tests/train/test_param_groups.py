"""Which parameters are the classifier's, how far others are from it, and their rates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax
from resnet_jax.config.schema import default_config
from resnet_jax.train.optimizer import OptimizerConfig, make_optimizer
from resnet_jax.train.param_groups import distances_from_head, in_head

EXPECTED_DISTANCES = {
    "resnet50d": {"conv1_1": 5, "bn1": 5, "layer1_2": 4, "layer3_5": 2, "layer4_0": 1, "fc": 0},
    "preresnet20": {"conv1": 4, "layer1_0": 3, "layer3_2": 1, "bn_final": 1, "fc": 0},
    "resnetrs50": {"conv1_1": 5, "pool_conv": 5, "pool_bn": 5, "layer4_2": 1},
    "fixup_resnet20": {"conv1": 4, "layer2_1": 2, "fc_shift": 0, "fc": 0},
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", EXPECTED_DISTANCES)
@pytest.mark.parametrize("scan", [False, True])
def test_rates_fall_by_the_stage(name, scan):
    model = resnet_jax.create_model(name, scan=scan)
    params = jax.eval_shape(
        lambda: resnet_jax.init_variables(model, jax.random.key(0), (32, 32, 3))
    )
    params = params["params"]
    distances = distances_from_head(params)
    for module, distance in EXPECTED_DISTANCES[name].items():
        if scan and module not in params:
            module = module.split("_")[0] + "_rest"  # noqa: PLW2901
        assert set(jax.tree.leaves(distances[module])) == {distance}

    config = default_config().optimizer
    config.update({"momentum": 0.0, "weight_decay": 0.0, "layer_decay": 0.7})
    optimizer = make_optimizer(OptimizerConfig(**config), lambda step: 0.1)
    small = jax.tree.map(lambda leaf: jnp.ones(leaf.shape[:1]), params)
    updates, _ = optimizer.update(small, optimizer.init(small), small)
    for update, distance in zip(jax.tree.leaves(updates), jax.tree.leaves(distances), strict=True):
        np.testing.assert_allclose(update, -0.1 * 0.7**distance, rtol=1e-6)


@pytest.mark.parametrize("rule", [distances_from_head, in_head])
def test_a_parameter_of_no_part_is_refused(rule):
    with pytest.raises(ValueError, match="parameter neck/kernel is in 0 parts"):
        rule({"neck": {"kernel": jnp.ones(1)}, "fc": {"kernel": jnp.ones(1)}})


def test_decay_and_momentum_are_as_ever_at_a_lower_rate():
    """A rate per parameter multiplies the whole step, decoupled decay included."""
    params = {"conv1": {"kernel": jnp.array([1.0, -2.0])}, "fc": {"kernel": jnp.array([3.0])}}
    gradients = jax.tree.map(lambda p: p / 3, params)

    def third_step(layer_decay):
        config = default_config().optimizer
        config.update({"decay": "decoupled", "weight_decay": 0.1, "layer_decay": layer_decay})
        optimizer = make_optimizer(OptimizerConfig(**config), lambda step: 0.1)
        state = optimizer.init(params)
        for _ in range(3):
            updates, state = optimizer.update(gradients, state, params)
        return updates

    scaled, base = third_step(0.5), third_step(1.0)
    np.testing.assert_allclose(scaled["conv1"]["kernel"], 0.5 * base["conv1"]["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(scaled["fc"]["kernel"], base["fc"]["kernel"])
