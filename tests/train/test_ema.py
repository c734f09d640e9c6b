"""Moving averages of parameters and statistics, as training steps update them."""

import jax
import pytest

from resnet_jax.train.ema import EmaConfig
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
