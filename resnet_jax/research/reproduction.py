"""What a reproduction is: a table whose rows are claims with verdicts, and a figure."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from resnet_jax.research.runner import Lab, Size

Verdict = Literal["reproduced", "consistent (n=1)", "not reproduced", "not run: budget"]


@dataclasses.dataclass(frozen=True)
class Within:
    """The values that count as reproduced, both ends included."""

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
    """One claim: what the paper says, what was measured, and what counts as the same.

    Attributes:
        what: what is measured, with its unit.
        published: the paper's value, or a few of its words; None where it gives neither.
        source: where that is read, such as "He et al. 2015, table 6".
        data: what it was measured on here: "CIFAR-10", "digits", "initial values", "arithmetic".
        measured: one value for each seed; empty if it wasn't run.
        accepts: the values that count as reproduced. Of several seeds the mean must be one, and
            one standard error to either side of it too.
        exact: nothing is random, so that a single value is proof.
    """

    what: str
    published: float | str | None
    source: str
    data: str
    measured: tuple[float, ...]
    accepts: Within
    exact: bool = False

    @property
    def n(self) -> int:
        """Independent measurements."""
        return len(self.measured)

    @property
    def mean(self) -> float | None:
        """Of the measurements."""
        return float(np.mean(self.measured)) if self.measured else None

    @property
    def std(self) -> float | None:
        """Standard deviation of the measurements, with n - 1; None for fewer than two."""
        return float(np.std(self.measured, ddof=1)) if self.n > 1 else None

    @property
    def verdict(self) -> Verdict:
        """What may be said of the claim; one seed is no reproduction of what is random."""
        if self.mean is None:
            return "not run: budget"
        error = (self.std or 0.0) / math.sqrt(self.n)
        if not all(self.mean + sign * error in self.accepts for sign in (-1, 0, 1)):  # as for NaN
            return "not reproduced"
        return "reproduced" if self.exact or self.n > 1 else "consistent (n=1)"

    def to_json(self) -> dict[str, Any]:
        """The row as a record of JSON; numbers that aren't finite are text."""
        return {
            "what": self.what,
            "published": self.published,
            "source": self.source,
            "data": self.data,
            "measured": [_finite(value) for value in self.measured],
            "mean": None if self.mean is None else _finite(self.mean),
            "std": None if self.std is None else _finite(self.std),
            "n": self.n,
            "exact": self.exact,
            "accepts": str(self.accepts),
            "verdict": self.verdict,
        }


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


@dataclasses.dataclass(frozen=True)
class Report:
    """What running an artefact gives.

    Attributes:
        rows: the table.
        figure: drawn by `resnet_jax.research.figures`.
        data: what the figure shows, as values of JSON, so that it can be drawn in another way.
    """

    rows: tuple[Row, ...]
    figure: Figure
    data: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Artefact:
    """A table or figure of a paper that can be run again.

    Attributes:
        name: on the command line, such as "he2015-table1".
        title: what it shows, in a few words.
        paper: authors, year and arXiv number.
        claim: what it says, in a sentence.
        runs: how it is made, by size: "cpu" takes minutes on two cores, "full" an accelerator.
    """

    name: str
    title: str
    paper: str
    claim: str
    runs: Mapping[Size, Callable[[Lab], Report]]


def overall(verdicts: list[Verdict]) -> str:
    """What may be said of a whole table: the worst of its rows, and of how many."""
    ranks: tuple[Verdict, ...] = (
        "not reproduced",
        "not run: budget",
        "consistent (n=1)",
        "reproduced",
    )
    for verdict in ranks:
        count = verdicts.count(verdict)
        if count:
            return verdict if count == len(verdicts) else f"{verdict} ({count} of {len(verdicts)})"
    return "not run: budget"
