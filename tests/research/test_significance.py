"""Tests, intervals and numbers of seeds, against tables and by simulation."""

import json
import math

import numpy as np
import pytest

from resnet_jax.research.significance import (
    compare_seeds,
    mean_interval,
    sampling_error,
    seeds_needed,
)

# Quantiles of Student's t at 97.5 %, from printed tables (degrees of freedom → quantile).
T_975 = {1: 12.706, 2: 4.303, 4: 2.776, 9: 2.262}


def _by_seed(values, start=0):
    return dict(enumerate(values, start))


def test_shared_seeds_are_compared_pair_by_pair():
    # Student 1908, "The probable error of a mean", section IX: hours of sleep that two drugs add
    # for ten patients. He gives a mean difference of 1.58 and a deviation of 1.17 (dividing by n).
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = compare_seeds(_by_seed(first), _by_seed(second))
    assert found.test == "paired t"
    assert found.effect == pytest.approx(1.58)
    reach = T_975[9] * 1.17 / math.sqrt(10 - 1)
    assert (found.low, found.high) == pytest.approx((1.58 - reach, 1.58 + reach), abs=0.01)
    assert found.p == pytest.approx(0.0028, abs=1e-4)
    assert found.is_real
    # The order of the seeds doesn't matter; their pairing does.
    turned = compare_seeds(_by_seed(first), dict(reversed(_by_seed(second).items())))
    assert turned.p == pytest.approx(found.p)


def test_other_seeds_are_compared_by_welch():
    a, b = [0.90, 0.92, 0.94], [0.93, 0.96, 0.95, 0.97, 0.94]
    found = compare_seeds(_by_seed(a), _by_seed(b, start=3))
    variances = np.var(a, ddof=1) / 3, np.var(b, ddof=1) / 5  # 1.333e-4, 5e-5
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 2 + variances[1] ** 2 / 4)
    assert freedom == pytest.approx(3.533, abs=1e-3)  # Welch 1947, eq. 28
    assert found.test == "Welch's t"
    assert found.seeds == (3, 5)
    assert found.effect == pytest.approx(0.03)
    # Between the quantiles of 3 and 4 degrees of freedom, 3.182 and 2.776.
    reach = (found.high - found.effect) / math.sqrt(sum(variances))
    assert 2.776 < reach < 3.182
    assert found.low == pytest.approx(2 * found.effect - found.high)
    assert found.is_real is False


@pytest.mark.parametrize("paired", [True, False])
def test_intervals_cover_the_true_difference_in_95_percent_of_experiments(paired):
    random, true, covered, trials = np.random.default_rng(0), 0.002, 0, 1_000
    for _ in range(trials):
        chance = random.normal(0, 0.002, 4)  # of the seed, common to both where they are shared
        a = 0.91 + chance + random.normal(0, 0.001, 4)
        b = 0.91 + true + (chance if paired else 0) + random.normal(0, 0.003, 4)
        found = compare_seeds(_by_seed(a), _by_seed(b, start=0 if paired else 4))
        covered += found.low <= true <= found.high
    # Three standard errors of a share of 1,000; Welch's test is approximate for few seeds.
    assert covered / trials == pytest.approx(0.95, abs=0.02)


@pytest.mark.thorough
@pytest.mark.parametrize(("paired", "std"), [(True, 0.004), (False, 0.002)])
def test_the_number_of_seeds_has_the_power_it_promises(paired, std):
    variance = std**2 if paired else 2 * std**2
    n = seeds_needed(variance, paired=paired)
    assert n > 5

    def power(n):
        random, trials = np.random.default_rng(1), 600
        a = random.normal(0.9, std, (trials, n)) * (0 if paired else 1)
        b = random.normal(0.003, std, (trials, n)) + (0 if paired else 0.9)
        found = 0
        for first, second in zip(a, b, strict=True):
            start = 0 if paired else n
            found += bool(compare_seeds(_by_seed(first), _by_seed(second, start)).is_real)
        return found / trials

    assert power(n) > 0.75  # three standard errors of a share of 600 below 80 %
    assert power(n - 3) < 0.8


def test_numbers_of_seeds_of_published_tables():
    # Cohen 1988, tables 2.4.1 (d = 0.5 and 0.8, two-sided 5 %, power 0.8): 64 and 26 of each group.
    for effect, wanted in ((0.5, 64), (0.8, 26)):
        assert seeds_needed(2.0, paired=False, effect=effect) == wanted
    # One sample with an effect of half a deviation: 34.
    assert seeds_needed(1.0, paired=True, effect=0.5) == 34
    assert seeds_needed(1e-12, paired=True) == 2
    assert seeds_needed(1.0, paired=True) is None  # above 10,000


@pytest.mark.parametrize("paired", [True, False])
def test_more_variance_never_needs_fewer_seeds(paired):
    needed = [seeds_needed(float(v), paired=paired) for v in np.geomspace(1e-9, 1e-3, 241)]
    assert needed == sorted(needed)
    assert needed[0] == 2


def test_numbers_of_seeds_up_to_ten_thousand_are_found():
    # (1.960 + 0.842)² variance / effect² for many seeds.
    variance = 9_500 * 0.003**2 / (1.95996 + 0.84162) ** 2
    assert seeds_needed(variance, paired=True) == pytest.approx(9_500, abs=3)


def test_more_seeds_are_those_beyond_the_ones_there_are():
    a, b = [0.90, 0.91, 0.92], [0.90, 0.92, 0.91]
    found = compare_seeds(_by_seed(a), _by_seed(b))
    needed = seeds_needed(float(np.var(np.subtract(b, a), ddof=1)), paired=True)
    assert found.more_seeds == needed - 3 > 0


@pytest.mark.parametrize(
    ("first", "second", "effect", "note"),
    [
        ([0.9], [0.92], 0.02, "a single seed has no variance; train at least two, better five"),
        ([0.9, 0.91], [0.92], 0.015, "a single seed has no variance"),
        ([0.9, 0.91], [0.9, 0.91], 0.0, "the scores are equal; no variance was seen"),
        ([0.9, 0.91, 0.92], [0.91, 0.92, 0.93], 0.01, "every seed has it; no variance was seen"),
        ([0.9, math.nan], [0.91, 0.92], math.nan, "a score isn't finite"),
    ],
)
def test_what_cannot_be_decided_has_a_note(first, second, effect, note):
    found = compare_seeds(_by_seed(first), _by_seed(second))
    assert found.effect == pytest.approx(effect, nan_ok=True)
    assert found.note.startswith(note)
    assert (found.is_real, found.low, found.p, found.more_seeds) == (None, None, None, None)


def test_a_difference_as_json():
    found = compare_seeds(_by_seed([0.9, 0.91]), _by_seed([0.95, 0.97])).to_json()
    assert json.loads(json.dumps(found)) == found | {"seeds": [2, 2]}
    with pytest.raises(ValueError, match="a group of seeds is empty"):
        compare_seeds({}, {0: 0.9})


def test_the_interval_of_a_mean():
    low, high = mean_interval([1.0, 2.0, 3.0])
    reach = T_975[2] / math.sqrt(3)
    assert (low, high) == pytest.approx((2 - reach, 2 + reach), abs=1e-3)
    low, high = mean_interval([1.0, 2.0])
    assert high - 1.5 == pytest.approx(T_975[1] * math.sqrt(0.5 / 2), abs=1e-3)
    assert mean_interval([1.0]) is None
    assert mean_interval([2.0, 2.0]) == (2.0, 2.0)
    low, high = mean_interval([10.0, 100.0, 1000.0], ratios=True)
    reach = T_975[2] / math.sqrt(3)
    assert (math.log10(low), math.log10(high)) == pytest.approx((2 - reach, 2 + reach), abs=1e-3)


def test_the_sampling_error_is_the_spread_over_test_sets():
    assert sampling_error(0.9, 10_000) == pytest.approx(0.003)
    shares = np.random.default_rng(0).binomial(360, 0.975, 20_000) / 360
    assert sampling_error(0.975, 360) == pytest.approx(shares.std(), rel=0.03)
