"""kill -9: at changes of files that Python makes, and at random times."""

import itertools
import random
import time

import pytest

from tests.faults.inject import Fault
from tests.runs import digest, start, steps_on_record, train

# More changes of files than a run makes until it has saved once, also when it has to tidy up first.
_PROGRESS = 80


def _same(workdir, whole):
    assert steps_on_record(workdir) == steps_on_record(whole)
    assert digest(workdir) == digest(whole)
    left = {path.name for path in workdir.iterdir()} - {path.name for path in whole.iterdir()}
    assert not left, f"remains: {left}"
    assert not list((workdir / "checkpoints").glob("*tmp*"))


@pytest.mark.thorough
@pytest.mark.parametrize("nth", [18, 71])
def test_a_kill_at_a_change_of_a_file_loses_nothing(nth, whole, tmp_path):
    assert train(tmp_path / "run", fault=f"files:{nth}:kill").code == -9
    assert train(tmp_path / "run").code == 0
    _same(tmp_path / "run", whole)


@pytest.mark.thorough
@pytest.mark.parametrize("first", [1, 4])
def test_a_kill_at_any_change_of_a_file_loses_nothing(first, whole, tmp_path, record_property):
    """Again and again while the run opens its directory, then each time it goes on, to its end."""
    changes = range(first, 30, 6)
    for nth in changes:
        assert train(tmp_path / "run", fault=f"files:{nth}:kill").code == -9
    for tries, nth in enumerate(itertools.cycle(changes), start=len(changes)):
        ended = train(tmp_path / "run", fault=f"files:{_PROGRESS + nth}:kill")
        if ended.code != -9:
            break
        assert tries < 20, ended.said
    assert ended.code == 0, ended.said
    record_property("tries", tries)
    assert tries > len(changes) + 1
    _same(tmp_path / "run", whole)


@pytest.mark.thorough
def test_kills_at_random_times_lose_nothing(whole, tmp_path):
    """Within the second after the first step, in which it saves most of the time."""
    rng, codes = random.Random(0), []
    for _ in range(3):
        running = start(tmp_path / "run").says("step ")
        time.sleep(rng.uniform(0, 1))
        ended = running.signal(9).end()
        codes.append(ended.code)
        assert ended.code in (-9, 0), ended.said
    assert -9 in codes  # a machine may be too fast for some of them
    assert train(tmp_path / "run").code == 0
    _same(tmp_path / "run", whole)


def test_faults_are_parsed():
    assert Fault.parse("a.b:C.d:3:ENOSPC") == Fault("a.b:C.d", 3, "ENOSPC")
