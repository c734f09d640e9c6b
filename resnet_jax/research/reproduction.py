"""Reproductions of tables and figures: rows with verdicts, and a figure."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from resnet_jax.research.runner import Runner, Size
from resnet_jax.research.significance import mean_interval, sampling_error

Verdict = Literal[
    "reproduced",
    "consistent (n=1)",
    "undecided",
    "not reproduced",
    "not run: budget",
    "open",
]


@dataclasses.dataclass(frozen=True)
class Within:
    """An interval of values that count as reproduced, both ends included."""

    low: float = -math.inf
    high: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        if self.low == self.high:
            return f"= {self.low:,.10g}"
        if self.high == math.inf:
            return f"≥ {self.low:,.4g}"
        if self.low == -math.inf:
            return f"≤ {self.high:,.4g}"
        return f"{self.low:,.4g} … {self.high:,.4g}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A claim: the published value, the measured values, and the accepted interval.

    Attributes:
        what: the measured quantity, with its unit.
        published: the paper's value, or a quotation; None if the paper has neither.
        source: where the value is published, such as "He et al. 2015, table 6".
        data: the data of the measurement: "CIFAR-10", "digits", "initial values", "arithmetic".
        measured: one value per seed; empty if nothing was run.
        accepts: the values that count as reproduced. With several seeds, the whole 95 % confidence
            interval of the mean must be accepted.
        exact: the measurement isn't random, so that a single value suffices.
        ratio: the measurement is a positive ratio, which varies by factors: mean and interval are
            those of the geometric mean.
        images: the number of test images, if the measured quantity is a test error in percent.
        planned: the number of measurements that are planned, if runs may be unfinished.
        unmeasured: the verdict without measurements; "open" if runs aren't finished.
    """

    what: str
    published: float | str | None
    source: str
    data: str
    measured: tuple[float, ...]
    accepts: Within
    exact: bool = False
    ratio: bool = False
    images: int | None = None
    planned: int | None = None
    unmeasured: Verdict = "not run: budget"

    @property
    def n(self) -> int:
        """The number of independent measurements."""
        return len(self.measured)

    @property
    def mean(self) -> float | None:
        """The mean of the measurements, geometric for ratios; None without measurements."""
        if not self.measured:
            return None
        with np.errstate(divide="ignore", invalid="ignore"):  # of values that aren't positive
            return float(stats.gmean(self.measured) if self.ratio else np.mean(self.measured))

    @property
    def std(self) -> float | None:
        """The standard deviation (n - 1) of the measurements; None for fewer than two."""
        with np.errstate(invalid="ignore"):  # of values that aren't finite
            return float(np.std(self.measured, ddof=1)) if self.n > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval of the mean; None if exact, or for fewer than two values."""
        return None if self.exact else mean_interval(self.measured, ratios=self.ratio)

    @property
    def sampling_error(self) -> float | None:
        """The standard error, in points, that the choice of the test images adds to the mean."""
        if self.images is None or self.mean is None:
            return None
        return 100 * sampling_error(1 - self.mean / 100, self.images)

    @property
    def verdict(self) -> Verdict:
        """The verdict; a single seed can't reproduce a random quantity.

        "open" until all planned measurements are there. "undecided" if the interval of the mean has
        both accepted values and others: more seeds would decide; or if all values are equal to a
        bound, which shows neither side.
        """
        if self.mean is None:
            return self.unmeasured
        if self.planned is not None and self.n < self.planned:
            return "open"
        if not math.isfinite(self.mean):
            return "not reproduced"
        if self.interval is None:
            if self.mean not in self.accepts:
                return "not reproduced"
            return "reproduced" if self.exact else "consistent (n=1)"
        if {*self.measured} in ({self.accepts.low}, {self.accepts.high}):
            return "undecided"
        low, high = self.interval
        if low in self.accepts and high in self.accepts:
            return "reproduced"
        is_apart = high < self.accepts.low or low > self.accepts.high
        return "not reproduced" if is_apart else "undecided"

    def to_json(self) -> dict[str, Any]:
        """The row as a JSON object; numbers that aren't finite are strings."""
        return {
            "what": self.what,
            "published": self.published,
            "source": self.source,
            "data": self.data,
            "measured": [_finite(value) for value in self.measured],
            "mean": None if self.mean is None else _finite(self.mean),
            "std": None if self.std is None else _finite(self.std),
            "interval": None if self.interval is None else [_finite(v) for v in self.interval],
            "n": self.n,
            "exact": self.exact,
            "ratio": self.ratio,
            "images": self.images,
            "planned": self.planned,
            "sampling_error": self.sampling_error,
            "accepts": str(self.accepts),
            "bounds": [_finite(self.accepts.low), _finite(self.accepts.high)],
            "verdict": self.verdict,
        }


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of a reproduction.

    Attributes:
        rows: the rows of the table.
        figure: drawn with `resnet_jax.research.figures`.
        data: the data of the figure, as JSON values.
    """

    rows: tuple[Row, ...]
    figure: Figure
    data: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """How to reproduce a table or figure of a paper.

    Attributes:
        name: the name on the command line, such as "he2015-table1".
        title: the subject in a few words.
        paper: authors, year and arXiv number.
        claim: the claim of the paper, in a sentence.
        runs: the functions that reproduce it, by size: "cpu" takes minutes on two cores, "cifar"
            uses the finished runs of configs/cifar10_table6.py, "full" needs an accelerator.
    """

    name: str
    title: str
    paper: str
    claim: str
    runs: Mapping[Size, Callable[[Runner], Report]]


def overall(verdicts: list[Verdict]) -> str:
    """The verdict of a table: the worst verdict of its rows, and how many rows have it."""
    ranks: tuple[Verdict, ...] = (
        "not reproduced",
        "not run: budget",
        "open",
        "undecided",
        "consistent (n=1)",
        "reproduced",
    )
    for verdict in ranks:
        count = verdicts.count(verdict)
        if count:
            return verdict if count == len(verdicts) else f"{verdict} ({count} of {len(verdicts)})"
    return "not run: budget"
