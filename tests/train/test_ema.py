"""Moving averages of parameters and statistics, as training steps update them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax
from resnet_jax.train.ema import EmaConfig, initial_ema, update_ema
from tests.train.small_step import assert_close, make_batch, run_steps


def test_averages_are_updated_every_few_steps():
    states = run_steps([make_batch(i) for i in range(4)], ema=EmaConfig(0.75, every=2))
    averages = [state.ema for state in states]
    assert_close(averages[1], averages[0], rtol=0, atol=0)
    assert_close(averages[3], averages[2], rtol=0, atol=0)
    for before, after in ((0, 2), (2, 4)):
        expected = jax.tree.map(
            lambda a, w: 0.75 * a + 0.25 * w, averages[before], states[after].variables()
        )
        assert_close(averages[after], expected)


@pytest.mark.parametrize("every", [1, 2])
def test_averages_begin_with_a_decay_that_forgets(every):
    """Of 1/10, 2/11, 3/12 and so on, up to `decay`, which is reached at the third."""
    states = run_steps(
        [make_batch(i) for i in range(4 * every)], ema=EmaConfig(0.24, every=every, warmup=True)
    )
    expected = states[0].variables()
    for update, decay in enumerate((1 / 10, 2 / 11, 0.24, 0.24), start=1):
        new = states[update * every]
        expected = jax.tree.map(
            lambda a, w, d=decay: d * a + (1 - d) * w, expected, new.variables()
        )
        assert_close(new.ema, expected)


def test_averages_of_bfloat16_parameters_move():
    """An update by a thousandth is lost in bfloat16, which has eight bits."""
    variables = {"params": jnp.ones(3, jnp.bfloat16), "batch_stats": jnp.ones(2)}
    averages = initial_ema(jax.tree.map(jnp.zeros_like, variables))
    config = EmaConfig(0.999)
    for step in range(1000):
        averages = update_ema(config, averages, variables, step=jnp.asarray(step))
    for leaf in jax.tree.leaves(averages):
        assert leaf.dtype == jnp.float32
        np.testing.assert_allclose(leaf, 1 - 0.999**1000, rtol=1e-4)


def test_a_run_with_bfloat16_parameters_keeps_averages(tiny_config, tmp_path):
    tiny_config.model.param_dtype = "bfloat16"
    tiny_config.ema_decay, tiny_config.ema_warmup = 0.999, True
    state = resnet_jax.fit(tiny_config, tmp_path / "run", stop_at_step=2).state
    assert state.params["conv1"]["kernel"].dtype == jnp.bfloat16
    assert state.ema["params"]["conv1"]["kernel"].dtype == jnp.float32
    restored = resnet_jax.restore_run(tmp_path / "run", ema=True)
    np.testing.assert_array_equal(
        restored.variables["params"]["fc"]["bias"], state.ema["params"]["fc"]["bias"]
    )
