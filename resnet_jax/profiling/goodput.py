"""Expected wall time and goodput of a run whose machines fail: by formula and by simulation.

A run trains, halts to save after each interval, and dies at random times, which follow a Poisson
process. Each start, the first too, takes a while until training goes on from the last checkpoint.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float

_NEVER_S = 1e15


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a run is made of.

    Attributes:
        step_s: seconds of a training step.
        other_s: seconds per step for all else but saving: evaluation, waiting for data.
        save_s: seconds that training halts for a checkpoint.
        restart_s: seconds from a failure, or the start of the run, to the next step.
        mtbf_s: mean seconds between failures of the job; infinity for none.
    """

    step_s: float
    other_s: float
    save_s: float
    restart_s: float
    mtbf_s: float

    @property
    def work_s(self) -> float:
        """Seconds of a step with all but saving."""
        return self.step_s + self.other_s


def best_interval_s(costs: Costs) -> float:
    """Return the seconds of work between checkpoints that make the expected wall time smallest.

    The estimate of Daly, "A higher order estimate of the optimum checkpoint interval for restart
    dumps", Future Generation Computer Systems 22 (2006), doi:10.1016/j.future.2004.11.016. With
    δ = `save_s` and M = `mtbf_s` it is √(2δM) · (1 + √(δ/2M)/3 + (δ/2M)/9) - δ for
    δ < 2M, else M. Infinity without failures.
    """
    save_s, mtbf_s = costs.save_s, costs.mtbf_s
    if save_s >= 2 * mtbf_s:
        return mtbf_s
    if math.isinf(mtbf_s):
        return math.inf
    ratio = save_s / (2 * mtbf_s)
    return math.sqrt(2 * save_s * mtbf_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save_s


def expected_wall_s(costs: Costs, *, steps: int, interval: int) -> float:
    """Return the expected seconds until `steps` steps are trained and saved.

    Daly's complete model (the same paper): M·e^(R/M)·(e^((τ+δ)/M) - 1) for each interval of τ
    seconds of work, where failures may come during saves and restarts, too. The first start takes
    as long as a restart, R = `restart_s`. Infinity if the number is too large for a float.

    Args:
        costs: of the run.
        steps: steps of the run.
        interval: steps between checkpoints.
    """
    mtbf_s = min(costs.mtbf_s, _NEVER_S)
    restart = costs.restart_s / mtbf_s
    try:
        return mtbf_s * math.expm1(restart) + sum(
            count * mtbf_s * math.exp(restart) * math.expm1(seconds / mtbf_s)
            for seconds, count in _segments(costs, steps=steps, interval=interval)
        )
    except OverflowError:
        return math.inf


def _segments(costs: Costs, *, steps: int, interval: int) -> list[tuple[float, int]]:
    """(seconds of work and the save, how many) of the full intervals and of the last one."""
    full, rest = divmod(steps, interval)
    sizes = [(interval, full), (rest, 1)]
    return [(size * costs.work_s + costs.save_s, count) for size, count in sizes if size and count]


def simulate_wall_s(
    costs: Costs, *, steps: int, interval: int, runs: int, seed: int
) -> Float[np.ndarray, " runs"]:
    """Return the seconds until `steps` steps are trained and saved, of each of `runs` runs.

    A Monte-Carlo simulation, start by start: it draws when each start fails, counts the intervals
    that it has saved until then, and begins the next start there.
    """
    generator = np.random.default_rng(seed)
    segments = _segments(costs, steps=steps, interval=interval)
    ends = np.cumsum(np.concatenate([np.full(count, seconds) for seconds, count in segments]))
    walls = np.zeros(runs)
    for run in range(runs):
        saved = 0  # intervals
        while saved < len(ends):
            done_s = ends[saved - 1] if saved else 0.0
            needed_s = costs.restart_s + ends[-1] - done_s
            fails_s = math.inf if math.isinf(costs.mtbf_s) else generator.exponential(costs.mtbf_s)
            if fails_s >= needed_s:
                walls[run] += needed_s
                break
            walls[run] += fails_s
            trained_s = done_s + max(0.0, fails_s - costs.restart_s)
            saved = max(saved, int(np.searchsorted(ends, trained_s, side="right")))
    return walls


def goodput(costs: Costs, wall_s: float, *, steps: int) -> float:
    """Return the share of the wall time that goes into training steps that count."""
    return steps * costs.step_s / wall_s
