"""Where the wall time of a run went, over all its starts: goodput.json.

Goodput is the share of the wall time that went into training steps that count. A step doesn't count
if its process was killed before the next checkpoint, or if the run went back to a checkpoint before
the step because of numbers that aren't finite.
"""

import contextlib
import itertools
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from etils import epath

from resnet_jax.checkpoint.workdir import GOODPUT, write_atomically
from resnet_jax.parallel.job.agreement import is_main
from resnet_jax.utils.paths import read_document

_log = logging.getLogger(__name__)

Phase = Literal["start_up", "restore", "compile", "data_wait", "step", "evaluation", "save"]
PHASES: tuple[Phase, ...] = get_args(Phase)
LOST = "lost"
"""Steps that don't count, and the time from a killed process to the next one."""

_SHARE = 0.01  # of the time that may go into writing goodput.json
_SAVES = 8  # recent checkpoints whose times are kept


class TimeAccount:
    """Seconds of this process by phase: each second belongs to one phase.

    Attributes:
        began: time of the beginning, by `time.time`.
    """

    def __init__(self, *, started_s: float = 0.0) -> None:
        """Begin in the phase "start_up".

        Args:
            started_s: seconds since this process started, which count as "start_up".
        """
        self.began = time.time() - started_s
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._phase: Phase = "start_up"
        self._since = time.monotonic() - started_s

    def enter(self, phase: Phase) -> Phase:
        """Begin a phase; return the phase before."""
        now = time.monotonic()
        self._seconds[self._phase] += now - self._since
        before, self._phase, self._since = self._phase, phase, now
        return before

    @contextlib.contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Count the time inside as `phase`."""
        before = self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def waited(self, seconds: float) -> None:
        """Count seconds of the phase "step", which have passed, as "data_wait"."""
        self._seconds["step"] -= seconds
        self._seconds["data_wait"] += seconds

    def take_back(self, seconds: float) -> None:
        """Count seconds of the phase "step", which have passed, as no phase."""
        self._seconds["step"] -= seconds

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each phase so far."""
        self.enter(self._phase)
        return {phase: round(seconds, 3) for phase, seconds in self._seconds.items()}


class Goodput:
    """Writes goodput.json: a list of "starts", one for each process, and their sums.

    Only the main process of a job writes. A file that can't be written is a warning.
    """

    def __init__(self, workdir: epath.Path, account: TimeAccount, *, first_step: int) -> None:
        """Continue the file of a run, and write it.

        Args:
            workdir: directory of the run.
            account: of this process.
            first_step: step of the checkpoint that this process goes on from, or 0.
        """
        self._path, self._account = workdir / GOODPUT, account
        self._earlier = without_lost_steps(
            read_starts(self._path), first_step=first_step, now=account.began
        )
        self._start: dict[str, Any] = {
            "began": round(account.began, 3),
            "first_step": first_step,
            "last_step": first_step,
            "saves": 0,
            "checkpoints": [],
        }
        self._lost_s = 0.0
        self._not_before = 0.0
        self._warned = False
        self._write()  # the time of a process that is killed before its first log point is lost too

    def reached(self, step: int) -> None:
        """Note a log point, and write the file unless that would take too much of the time."""
        self._start["last_step"] = step
        if time.monotonic() >= self._not_before:
            self._write()

    def saved(self, step: int) -> None:
        """Note that a checkpoint of `step` is being written, and write the file."""
        self._start["last_step"] = step
        self._start["saves"] += 1
        saves = self._start["saves"]
        here = {"step": step, "saves": saves, "seconds": self._account.seconds()}
        self._start["checkpoints"] = [*self._start["checkpoints"], here][-_SAVES:]
        self._write()

    def went_back(self, step: int) -> None:
        """Count the time in steps since the checkpoint of `step`, which was restored, as lost."""
        good = [saved for saved in self._start["checkpoints"] if saved["step"] <= step]
        kept_s = good[-1]["seconds"]["step"] if good else 0.0
        lost_s = self._account.seconds()["step"] - kept_s
        self._account.take_back(lost_s)
        self._lost_s = round(self._lost_s + lost_s, 3)
        self._start["checkpoints"] = good
        self._write()

    def end(self) -> None:
        """Write the file for the last time: this process loses nothing."""
        self._start["ended"] = True
        self._write()

    def totals(self) -> dict[str, Any]:
        """Return the sums over all starts; see `totals_of`."""
        return totals_of([*self._earlier, self._now()])

    def _now(self) -> dict[str, Any]:
        seconds = self._account.seconds()
        return self._start | {
            "updated": round(time.time(), 3),
            "seconds": {**seconds, LOST: self._lost_s},
        }

    def _write(self) -> None:
        if not is_main():
            return
        began = time.monotonic()
        starts = [*self._earlier, self._now()]
        try:
            document = json.dumps(totals_of(starts) | {"starts": starts}, indent=1)
            write_atomically(self._path, document + "\n")
        except OSError as error:
            if not self._warned:
                _log.warning("%s can't be written (%s).", self._path, error.strerror or error)
            self._warned = True
        now = time.monotonic()
        self._not_before = now + (now - began) / _SHARE


def record_end(workdir: epath.Path, account: TimeAccount) -> None:
    """Put on record that a process ended by itself before it could go on from a checkpoint.

    After a process that was killed, the time until then is lost, but not the time from then on.
    """
    starts = read_starts(workdir / GOODPUT)
    if starts and not starts[-1].get("ended"):
        Goodput(workdir, account, first_step=starts[-1]["last_step"]).end()


def read_starts(path: epath.Path) -> list[dict[str, Any]]:
    """Return the starts in a goodput.json; [] if there is none or it is damaged."""
    try:
        starts = list(json.loads(read_document(path))["starts"])
        found = without_lost_steps(starts, first_step=0, now=time.time())
        walls = [totals_of(history)["wall_s"] for history in (starts, found)]
        if not all(math.isfinite(number) for number in (*walls, *downtimes_s(starts))):
            raise ValueError("a number isn't finite")
    except FileNotFoundError:
        return []
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        _log.warning("%s can't be used (%s); the account of time begins anew.", path, error)
        return []
    return starts


def without_lost_steps(
    starts: list[dict[str, Any]], *, first_step: int, now: float
) -> list[dict[str, Any]]:
    """Count as lost what starts did after the checkpoint that the next start goes on from.

    After a start that was killed, the time until the next start is lost too. After a start that
    was told to stop, it isn't part of the run. Saves are cut like their seconds; in files of older
    versions, which don't count them at each checkpoint, only if all steps of a start are lost.

    Args:
        starts: in order.
        first_step: step of the checkpoint; 0 for the initial state.
        now: beginning of the next start, by `time.time`.
    """
    found = []
    for start in starts:
        seconds = dict(start["seconds"])
        kept, saves = seconds, start["saves"]
        if start["last_step"] > first_step:
            good = [saved for saved in start["checkpoints"] if saved["step"] <= first_step]
            kept = dict(good[-1]["seconds"]) if good else dict.fromkeys(PHASES, 0.0)
            saves = good[-1].get("saves", saves) if good else 0
            kept[LOST] = seconds[LOST] + sum(seconds[phase] - kept[phase] for phase in PHASES)
        if start is starts[-1] and not start.get("ended"):
            kept = kept | {LOST: kept[LOST] + max(0.0, now - start["updated"])}
        last_step = min(start["last_step"], first_step)
        rounded = {phase: round(value, 3) for phase, value in kept.items()}
        found.append(start | {"last_step": last_step, "saves": saves, "seconds": rounded})
    return found


def downtimes_s(starts: list[dict[str, Any]]) -> list[float]:
    """Return the seconds from the last record of each killed start to the beginning of the next."""
    return [
        max(0.0, after["began"] - before["updated"])
        for before, after in itertools.pairwise(starts)
        if not before.get("ended")
    ]


def totals_of(starts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the sums over starts.

    Returns:
        "goodput", the share of "step" in "wall_s"; "wall_s"; "seconds" by phase and "lost";
        "steps" and "saves" that count; "restarts".
    """
    seconds: Mapping[str, float] = {
        phase: round(sum(start["seconds"][phase] for start in starts), 3)
        for phase in (*PHASES, LOST)
    }
    wall_s = sum(seconds.values())
    return {
        "goodput": round(seconds["step"] / wall_s, 4) if wall_s else 0.0,
        "wall_s": round(wall_s, 3),
        "seconds": dict(seconds),
        "steps": starts[-1]["last_step"] if starts else 0,
        "saves": sum(start["saves"] for start in starts),
        "restarts": len(starts) - 1,
    }
