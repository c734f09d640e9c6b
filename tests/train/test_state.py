"""The train state: which of its arrays are step counts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_jax.config.schema import default_config
from resnet_jax.train.optimizer import OPTIMIZERS, OptimizerConfig, make_optimizer
from resnet_jax.train.state import is_step_count
from tests.train.small_step import initial_state

PARAMS = {"fc": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}


def _integers(opt_state):
    leaves = jax.tree_util.tree_leaves_with_path(opt_state)
    return [(p, leaf) for p, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.integer)]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("trainable", ["all", "head"])
def test_all_integers_of_our_optimisers_are_step_counts(name, trainable):
    fields = default_config().optimizer.to_dict()
    decay = "l2" if name in ("sgd", "lars") else "decoupled"
    fields |= {"name": name, "decay": decay, "trainable": trainable}
    optimizer = make_optimizer(OptimizerConfig(**fields), lambda step: 0.1)
    found = _integers(optimizer.init(PARAMS))
    assert found
    assert all(is_step_count(path, leaf) for path, leaf in found)


def test_a_rollback_moves_step_counts_only():
    optimizer = optax.apply_if_finite(optax.adam(0.1), max_consecutive_errors=3)
    moved = initial_state(optimizer=optimizer).moved_to(50)
    assert moved.step == 50
    assert moved.opt_state.inner_state[0].count == 50
    assert moved.opt_state.notfinite_count == moved.opt_state.total_notfinite == 0
    nan = jax.tree.map(lambda leaf: leaf * np.nan, moved.params)
    updates, _ = optimizer.update(nan, moved.opt_state, moved.params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(updates))


def test_accumulated_gradients_have_their_number_after_a_rollback():
    optimizer = optax.MultiSteps(optax.sgd(1.0), every_k_schedule=2).gradient_transformation()
    state = initial_state(optimizer=optimizer).moved_to(50)
    ones, opt_state = jax.tree.map(jnp.ones_like, state.params), state.opt_state
    for expected in (0.0, -1.0):
        updates, opt_state = optimizer.update(ones, opt_state, state.params)
        for leaf in jax.tree.leaves(updates):
            np.testing.assert_array_equal(leaf, np.full_like(leaf, expected))


def test_a_state_without_names_has_no_step_counts():
    for opt_state in (jnp.int32(1), [jnp.int32(1)], {"count": jnp.float32(1)}):
        assert not any(is_step_count(*of) for of in jax.tree_util.tree_leaves_with_path(opt_state))
