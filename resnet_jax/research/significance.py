"""Whether a difference between runs is real: intervals, tests, and numbers of seeds.

Scores vary with the seed and with the test images. Over seeds, differences are tested by Student's
t-test. Sign flips, ranks and the bootstrap need more seeds: three pairs have eight flips of signs,
so that no p-value is below 0.25. An accuracy is a mean over many images, whose errors are nearly
independent from run to run (Jordan 2023, 2304.01910), and so nearly normal. Colas et al. 2019
(1904.06979) compare such tests on small samples and recommend Welch's.

The test images are another source of variance: `sampling_error`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
POWER = 0.8
WANTED = 0.003
"""The difference in accuracy that `Difference.more_seeds` is for: 0.3 points."""

_MOST_SEEDS = 10_000  # of each group
_ROUNDING = 1e-9  # of scores in 0…1

Test = Literal["paired t", "Welch's t"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference between the scores of two groups of seeds.

    Attributes:
        effect: mean of the second group minus mean of the first; None if they can't be compared.
        low, high: 95 % confidence interval of the effect; None if it can't be estimated.
        p: two-sided p-value of no difference; None if it can't be estimated.
        test: "paired t" if both groups have the same seeds, or else "Welch's t".
        seeds: numbers of seeds of the two groups.
        more_seeds: how many more seeds both groups need until a difference of `WANTED` is found
            with a probability of 80 %, given the variance seen; None if it can't be estimated.
        note: why there is no interval.
    """

    effect: float | None
    seeds: tuple[int, int]
    test: Test | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    more_seeds: int | None = None
    note: str | None = None

    @property
    def is_real(self) -> bool | None:
        """Whether the interval excludes 0; None if there is no interval."""
        if self.low is None or self.high is None:
            return None
        return self.low > 0 or self.high < 0

    def to_json(self) -> dict[str, Any]:
        """The difference as a JSON object."""
        return dataclasses.asdict(self) | {"is_real": self.is_real}


def compare_seeds(first: Mapping[int, float], second: Mapping[int, float]) -> Difference:
    """Compare the scores of two groups of seeds.

    Seeds determine the order of the examples and their augmentation, so that scores of the same
    seed may vary together: groups of the same seeds are compared pair by pair (Student 1908). Other
    groups are compared by Welch's test (Welch 1947), which allows different variances.

    Args:
        first, second: seed → score, such as the top-1 accuracy in 0…1.

    Raises:
        ValueError: a group is empty.
    """
    if not first or not second:
        raise ValueError("a group of seeds is empty")
    a, b = np.array(list(first.values())), np.array(list(second.values()))
    effect, seeds = float(b.mean() - a.mean()), (len(a), len(b))
    if not np.isfinite(effect):
        return Difference(effect=effect, seeds=seeds, note="a score isn't finite")
    if min(seeds) < 2:
        note = "a single seed has no variance; train at least two, better five"
        return Difference(effect=effect, seeds=seeds, note=note)
    is_paired = set(first) == set(second)
    if is_paired:
        b = np.array([second[seed] for seed in first])
        variance = float(np.var(b - a, ddof=1))
    else:
        variance = float(np.var(a, ddof=1) + np.var(b, ddof=1))
    if variance < _ROUNDING**2:
        what = "the scores are equal" if abs(effect) < _ROUNDING else "every seed has it"
        return Difference(effect=effect, seeds=seeds, note=f"{what}; no variance was seen")
    result = stats.ttest_rel(b, a) if is_paired else stats.ttest_ind(b, a, equal_var=False)
    interval = result.confidence_interval(CONFIDENCE)
    needed = seeds_needed(variance, paired=is_paired)
    return Difference(
        effect=effect,
        seeds=seeds,
        test="paired t" if is_paired else "Welch's t",
        low=float(interval.low),
        high=float(interval.high),
        p=float(result.pvalue),
        more_seeds=None if needed is None else max(0, needed - min(seeds)),
    )


def seeds_needed(variance: float, *, paired: bool, effect: float = WANTED) -> int | None:
    """The fewest seeds of each group with which a t-test finds `effect` with a power of 80 %.

    The power of a two-sided test at 5 % is a tail of the noncentral t-distribution, with ν degrees
    of freedom and noncentrality effect / √(variance / n): ν is n - 1 for pairs. For two groups of
    equal variance it is 2 (n - 1) (Cohen 1988, section 2.4).

    Args:
        variance: of the differences of pairs, or the sum of the variances of both groups.
        paired: whether seeds are compared pair by pair.
        effect: the difference to be found.

    Returns:
        The number; None if it is above 10,000.
    """

    def is_enough(n: int) -> bool:
        freedom = (n - 1) if paired else 2 * (n - 1)
        shift = effect / math.sqrt(variance / n)
        critical = stats.t.ppf((1 + CONFIDENCE) / 2, freedom)
        upper = stats.nct.sf(critical, freedom, shift)
        lower = stats.nct.cdf(-critical, freedom, shift)
        # SciPy gives NaN for a large shift, where the upper tail is 1 and the lower tail 0.
        power = (1.0 if np.isnan(upper) else upper) + (0.0 if np.isnan(lower) else lower)
        return bool(power >= POWER)

    most = 2
    while not is_enough(most):
        if most == _MOST_SEEDS:
            return None
        most = min(2 * most, _MOST_SEEDS)
    least = max(2, most // 2)
    while least < most:
        middle = (least + most) // 2
        least, most = (least, middle) if is_enough(middle) else (middle + 1, most)
    return most


def mean_interval(values: Sequence[float], *, ratios: bool = False) -> tuple[float, float] | None:
    """The 95 % confidence interval of the mean, by Student's t; None for fewer than two values.

    Values that are all equal have an interval of length 0.

    Args:
        values: the values.
        ratios: the values are positive ratios, which vary by factors: the interval is that of the
            geometric mean, from the logarithms.
    """
    if len(values) < 2:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.log(values) if ratios else np.asarray(values)
        mean, error = scaled.mean(), scaled.std(ddof=1) / math.sqrt(len(values))
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * error
    low, high = np.exp([mean - reach, mean + reach]) if ratios else (mean - reach, mean + reach)
    return float(low), float(high)


def sampling_error(accuracy: float, examples: int) -> float:
    """The standard error of an accuracy that comes from the choice of the test images.

    √(p (1 - p) / N): each of N images, drawn independently, is classified correctly with the
    probability p. It is an upper bound: a part of this error differs from run to run, is in the
    spread over seeds too, and shrinks with more seeds; the part that depends on the images alone
    doesn't. Jordan 2023 (2304.01910) finds that most of the variance between runs on a test set
    comes from its size. Runs that are compared on the same images share a part of this error, so
    that their difference varies less than √2 times as much.

    Args:
        accuracy: p in 0…1.
        examples: N.
    """
    return math.sqrt(accuracy * (1 - accuracy) / examples)
