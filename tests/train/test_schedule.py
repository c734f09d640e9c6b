"""Learning rates against the formulas of their papers, counted in examples."""

import numpy as np
import pytest

from resnet_jax.config.schema import default_config
from resnet_jax.errors import ConfigError
from resnet_jax.train.schedule import ScheduleConfig, make_schedule


def _schedule(*, batch_size=100, unit=1.0, total_steps=100, **fields):
    config = default_config().schedule
    config.update({"base_lr": 0.1, "reference_batch": 100, **fields})
    return make_schedule(
        ScheduleConfig(**config), batch_size=batch_size, unit=unit, total_steps=total_steps
    )


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


def test_linear_and_poly_fall_to_their_share_of_the_peak():
    """The schedule of MLPerf's ResNet-50: quadratic, after a warm-up."""
    rates = _schedule(name="poly", power=2.0, final=0.01, warmup=2_000.0)
    left = [(1 - t / 80) ** 2 for t in (0, 20, 40, 80)]
    expected = [0.1 * (0.01 + 0.99 * share) for share in left]
    np.testing.assert_allclose([float(rates(s)) for s in (20, 40, 60, 100)], expected, rtol=1e-5)
    rates = _schedule(name="linear")
    np.testing.assert_allclose([float(rates(s)) for s in (0, 25, 99)], [0.1, 0.075, 0.001], 1e-4)
    rates = _schedule(name="cosine", final=0.2)
    np.testing.assert_allclose([float(rates(s)) for s in (0, 50, 100)], [0.1, 0.06, 0.02], 1e-5)


def test_warm_up_from_a_share_begins_at_it():
    """Goyal et al. 2017, section 2.2: from the rate of the smallest batch to 8 times that."""
    rate = _schedule(name="constant", warmup=1_000.0, warmup_from=0.125)
    expected = [0.1 * (0.125 + 0.875 * min(1, s / 10)) for s in range(12)]
    np.testing.assert_allclose([float(rate(s)) for s in range(12)], expected, rtol=1e-5)


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
