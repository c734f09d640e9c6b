"""Variables converted for scanned networks and for other numbers of channels."""

import jax
import numpy as np
import optax
import pytest
from flax.core import freeze

import resnet_jax
from resnet_jax.errors import ConfigError
from resnet_jax.models.resnet import ResNet

IMAGES = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
TINY = {"stage_sizes": (3, 3), "width": 4, "num_classes": 5, "stem": "cifar"}


def test_stacking_and_unstacking_are_inverse_in_an_optimisers_state_too():
    variables = resnet_jax.init_variables(ResNet(**TINY), jax.random.key(0), (8, 8, 3))
    state = optax.trace(0.9).init(variables["params"])
    back = resnet_jax.unstack_units(resnet_jax.stack_units(state))
    jax.tree.map(np.testing.assert_array_equal, back, state)


def test_units_without_arrays_cannot_be_counted():
    """As in the state of an optimiser that leaves them alone."""
    state = {"layer1_rest": {"conv1": {"kernel": optax.MaskedNode()}}}
    with pytest.raises(ConfigError, match="layer1_rest has no arrays"):
        resnet_jax.unstack_units(state)


def test_frozen_variables_become_those_of_dicts():
    """Flax's FrozenDict, which older programs hold their variables in."""
    scanned = resnet_jax.stack_units(
        resnet_jax.init_variables(ResNet(**TINY), jax.random.key(0), (8, 8, 3))
    )
    frozen = freeze(scanned)
    jax.tree.map(
        np.testing.assert_array_equal,
        (resnet_jax.unstack_units(frozen), resnet_jax.stack_units(frozen)),
        (resnet_jax.unstack_units(scanned), scanned),
    )
    jax.tree.map(
        np.testing.assert_array_equal,
        resnet_jax.adapt_input_channels(frozen, 1),
        resnet_jax.adapt_input_channels(scanned, 1),
    )


def test_fewer_or_more_input_channels():
    model = ResNet(**TINY)
    variables = model.init(jax.random.key(0), IMAGES)
    grey = IMAGES[..., :1]
    one = resnet_jax.adapt_input_channels(variables, 1)
    six = resnet_jax.adapt_input_channels(variables, 6)
    expected = model.apply(variables, grey.repeat(3, axis=-1))
    np.testing.assert_allclose(model.apply(one, grey), expected, rtol=1e-4, atol=1e-5)
    many = model.apply(six, grey.repeat(6, axis=-1))
    np.testing.assert_allclose(many, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="at least 1"):
        resnet_jax.adapt_input_channels(variables, 0)
