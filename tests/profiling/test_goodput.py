"""Daly's formulas agree with a numerical optimum and with simulated runs."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from resnet_jax.profiling.goodput import (
    Costs,
    best_interval_s,
    expected_wall_s,
    goodput,
    simulate_wall_s,
)


def _costs(save_s, restart_s, mtbf_s):
    return Costs(step_s=0.8, other_s=0.2, save_s=save_s, restart_s=restart_s, mtbf_s=mtbf_s)


@pytest.mark.parametrize(("save_s", "mtbf_s"), [(1.0, 1e5), (5.0, 600.0), (30.0, 600.0), (60, 100)])
def test_the_interval_is_the_minimum_of_the_expected_time(save_s, mtbf_s):
    def wall_per_second(interval_s):  # without the constant factor of restarts
        return math.expm1((interval_s + save_s) / mtbf_s) / interval_s

    found = minimize_scalar(wall_per_second, bounds=(1e-3, 10 * mtbf_s), method="bounded")
    interval_s = best_interval_s(_costs(save_s, 0.0, mtbf_s))
    assert wall_per_second(interval_s) <= 1.001 * found.fun
    assert interval_s == pytest.approx(found.x, rel=0.03)


def test_extreme_costs():
    assert best_interval_s(_costs(300.0, 0.0, 100.0)) == 100.0
    assert best_interval_s(_costs(1.0, 5.0, math.inf)) == math.inf
    never = _costs(2.0, 5.0, math.inf)
    assert expected_wall_s(never, steps=10, interval=4) == pytest.approx(5 + 10 + 3 * 2)
    assert expected_wall_s(_costs(1.0, 1e6, 10.0), steps=10, interval=4) == math.inf
    assert goodput(never, 21.0, steps=10) == pytest.approx(8 / 21)


@pytest.mark.parametrize("interval", [5, 37, 150, 1000])
@pytest.mark.parametrize("restart_s", [3.0, 60.0])
def test_simulated_runs_take_as_long_as_expected(interval, restart_s):
    costs = _costs(4.0, restart_s, 200.0)
    expected = expected_wall_s(costs, steps=1000, interval=interval)
    if expected > 5000 * costs.mtbf_s:
        pytest.skip("it fails too often to be simulated")
    walls = simulate_wall_s(costs, steps=1000, interval=interval, runs=400, seed=0)
    error = walls.std(ddof=1) / math.sqrt(len(walls))
    assert abs(walls.mean() - expected) < 4 * error
    assert walls.min() >= 1000 + restart_s


def test_a_run_that_never_fails_is_simulated_exactly():
    costs = _costs(2.0, 5.0, math.inf)
    walls = simulate_wall_s(costs, steps=10, interval=4, runs=3, seed=0)
    np.testing.assert_allclose(walls, expected_wall_s(costs, steps=10, interval=4))
