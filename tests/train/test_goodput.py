"""goodput.json: each second of a run is in one phase, over restarts and kills."""

import contextlib
import json
import logging
import time

import pytest
from etils import epath

from resnet_jax.errors import NumericalError
from resnet_jax.train import goodput
from resnet_jax.train.dispatch import CompiledSteps
from resnet_jax.train.fit import fit
from resnet_jax.train.goodput import (
    PHASES,
    Goodput,
    TimeAccount,
    read_starts,
    record_end,
    totals_of,
    without_lost_steps,
)
from tests.runs import start, train


class Time:
    """A clock that tests move."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(goodput.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(goodput.time, "time", lambda: 5e8 + self.now)


@pytest.fixture
def clock(monkeypatch):
    return Time(monkeypatch)


def _seconds(**phases):
    return dict.fromkeys(PHASES, 0.0) | phases


def test_each_second_belongs_to_one_phase(clock):
    account = TimeAccount(started_s=2.0)
    clock.now += 1
    with account.phase("restore"):
        clock.now += 3
    account.enter("step")
    clock.now += 10
    with account.phase("evaluation"), account.phase("compile"):
        clock.now += 4
    clock.now += 5
    account.waited(1.5)
    with contextlib.suppress(KeyError), account.phase("save"):
        clock.now += 7
        raise KeyError
    clock.now += 1
    assert account.seconds() == _seconds(
        start_up=3.0, restore=3.0, step=14.5, data_wait=1.5, compile=4.0, save=7.0
    )


def _start(clock, account, step):
    """A process that goes on from `step`, with a second of start-up."""
    writer = Goodput(account[0], account[1], first_step=step)
    clock.now += 1
    account[1].enter("step")
    return writer


def test_steps_that_are_trained_again_and_the_time_until_the_next_start_are_lost(clock, tmp_path):
    path = epath.Path(tmp_path)
    account = TimeAccount()
    writer = _start(clock, (path, account), 0)
    clock.now += 10
    with account.phase("save"):
        clock.now += 2
    writer.saved(4)
    clock.now += 6
    writer.reached(6)
    clock.now += 3  # not on record, and killed

    clock.now += 20
    account = TimeAccount()
    writer = _start(clock, (path, account), 4)
    clock.now += 8
    writer.saved(8)
    writer.end()
    clock.now += 500  # stopped, and begun again later

    account = TimeAccount()
    writer = _start(clock, (path, account), 8)
    clock.now += 5
    totals = writer.totals()
    assert totals["seconds"] == _seconds(start_up=3.0, step=23.0, save=2.0) | {"lost": 29.0}
    assert totals["goodput"] == round(23 / 57, 4)
    assert (totals["steps"], totals["saves"], totals["restarts"]) == (8, 2, 2)


def test_a_process_that_ends_before_it_goes_on_ends_the_lost_time(clock, tmp_path):
    path = epath.Path(tmp_path)
    writer = _start(clock, (path, TimeAccount()), 0)
    clock.now += 10
    writer.saved(4)
    clock.now += 6
    writer.reached(6)  # and killed

    clock.now += 20
    account = TimeAccount()
    clock.now += 2
    record_end(path, account)
    before = (path / "goodput.json").read_bytes()
    record_end(path, account)
    assert (path / "goodput.json").read_bytes() == before
    clock.now += 500  # in the queue

    totals = _start(clock, (path, TimeAccount()), 4).totals()
    assert totals["seconds"] == _seconds(start_up=2.0, step=10.0) | {"lost": 28.0}
    assert totals["restarts"] == 2


def test_a_run_that_ends_by_an_error_has_ended(tiny_config, tmp_path, monkeypatch):
    def fail(*_):
        raise NumericalError("The loss isn't finite.")

    monkeypatch.setattr(CompiledSteps, "compile", fail)
    with pytest.raises(NumericalError):
        fit(tiny_config, tmp_path)
    (start,) = json.loads((tmp_path / "goodput.json").read_text())["starts"]
    assert start["ended"]


def test_steps_before_a_return_to_a_checkpoint_are_lost(clock, tmp_path):
    path, account = epath.Path(tmp_path), TimeAccount()
    writer = _start(clock, (path, account), 0)
    clock.now += 10
    writer.saved(4)
    clock.now += 6
    with account.phase("restore"):
        clock.now += 2
        writer.went_back(4)
    with account.phase("save"):
        clock.now += 1
        writer.saved(8)  # the state of step 4
    clock.now += 5
    with account.phase("restore"):
        writer.went_back(8)
    clock.now += 3
    expected = _seconds(start_up=1.0, step=13.0, restore=2.0, save=1.0) | {"lost": 11.0}
    assert writer.totals()["seconds"] == expected
    writer.reached(12)  # and killed

    totals = _start(clock, (path, TimeAccount()), 8).totals()
    expected = _seconds(start_up=2.0, step=10.0, restore=2.0, save=1.0) | {"lost": 14.0}
    assert totals["seconds"] == expected


def test_a_start_that_was_killed_before_it_saved_is_lost_whole(clock):
    killed = {
        "began": 0.0,
        "updated": 50.0,
        "first_step": 0,
        "last_step": 10,
        "saves": 0,
        "checkpoints": [],
        "seconds": _seconds(start_up=20.0, step=30.0) | {"lost": 0.0},
    }
    (found,) = without_lost_steps([killed], first_step=0, now=60.0)
    assert found["seconds"] == _seconds() | {"lost": 60.0}
    assert found["last_step"] == 0
    again = without_lost_steps([found, killed | {"updated": 70.0}], first_step=0, now=75.0)
    assert [start["seconds"]["lost"] for start in again] == [60.0, 55.0]


def test_saves_that_are_lost_do_not_count(clock, tmp_path):
    """The run goes back to the checkpoint of step 2; saves took 2 s."""
    path, account = epath.Path(tmp_path), TimeAccount()
    writer = _start(clock, (path, account), 0)
    for step in (2, 4, 6):
        with account.phase("save"):
            clock.now += 2
            writer.saved(step)
    starts = read_starts(path / "goodput.json")
    totals = totals_of(without_lost_steps(starts, first_step=2, now=5e8 + clock.now))
    assert (totals["saves"], totals["seconds"]["save"], totals["seconds"]["lost"]) == (1, 2.0, 4.0)

    for one in starts[0]["checkpoints"]:
        del one["saves"]  # of an older version
    totals = totals_of(without_lost_steps(starts, first_step=2, now=5e8 + clock.now))
    assert (totals["saves"], totals["seconds"]["save"]) == (3, 2.0)


def test_steps_of_several_starts_are_lost_with_their_checkpoints(clock):
    """The newest two checkpoints were damaged, so that the run goes back over a restart."""
    first = {
        "began": 0.0,
        "updated": 30.0,
        "ended": True,
        "first_step": 0,
        "last_step": 6,
        "saves": 2,
        "checkpoints": [{"step": s, "seconds": _seconds(step=5.0 * s)} for s in (2, 4, 6)],
        "seconds": _seconds(step=30.0) | {"lost": 0.0},
    }
    second = first | {"first_step": 6, "last_step": 8, "checkpoints": []}
    found = without_lost_steps([first, second], first_step=4, now=99.0)
    assert [start["seconds"] for start in found] == [
        _seconds(step=20.0) | {"lost": 10.0},
        _seconds() | {"lost": 30.0},
    ]


def test_the_file_is_written_seldom_enough_to_cost_a_hundredth(clock, tmp_path, monkeypatch):
    written = []

    def slow(path, content):
        written.append(clock.now)
        clock.now += 0.5

    monkeypatch.setattr(goodput, "write_atomically", slow)
    writer = Goodput(epath.Path(tmp_path), TimeAccount(), first_step=0)
    for step in range(200):
        clock.now += 1
        writer.reached(step)
    assert 4 <= len(written) <= 6


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"updated"', '"other"'),
        ('"seconds"', '"other"'),
        ('"step": 0', '"step": "0"'),
        ('"updated": 5', '"updated": "x", "x": 5'),
        ("{", "["),
        ("0.0", "NaN"),
    ],
)
def test_a_damaged_file_is_a_warning(before, after, clock, tmp_path, caplog):
    path = epath.Path(tmp_path)
    Goodput(path, TimeAccount(), first_step=0).saved(0)
    text = (path / "goodput.json").read_text()
    assert before in text
    (path / "goodput.json").write_text(text.replace(before, after))
    assert read_starts(path / "goodput.json") == []
    assert "the account of time begins anew" in caplog.text
    writer = Goodput(path, TimeAccount(), first_step=0)
    clock.now += 1
    assert writer.totals()["wall_s"] == 1


def test_a_file_that_cannot_be_written_is_one_warning(tmp_path, caplog):
    writer = Goodput(epath.Path(tmp_path / "missing"), TimeAccount(), first_step=0)
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            writer.saved(step)
    assert caplog.text.count("can't be written") == 1


@pytest.mark.thorough
def test_a_stopped_and_resumed_run_accounts_for_all_of_its_time(tiny_config, tmp_path):
    walls = []
    for stop_at_step in (6, None):
        began = time.monotonic()
        result = fit(tiny_config, tmp_path, stop_at_step=stop_at_step)
        walls.append(time.monotonic() - began)
    document = json.loads((tmp_path / "goodput.json").read_text())
    for one, wall_s in zip(document["starts"], walls, strict=True):
        assert sum(one["seconds"].values()) == pytest.approx(wall_s, rel=0.05, abs=0.3)
        assert one["seconds"]["lost"] == 0
        assert all(one["seconds"][phase] > 0 for phase in PHASES if phase != "data_wait")
    assert (document["steps"], document["restarts"]) == (12, 1)
    assert not result.stopped_early
    summary = json.loads((tmp_path / "summary.json").read_text())["goodput"]
    assert 0 < summary["wall_s"] <= document["wall_s"]
    assert summary.keys() == totals_of(document["starts"]).keys()

    before = (tmp_path / "goodput.json").read_bytes()
    fit(tiny_config, tmp_path)  # finished before
    assert (tmp_path / "goodput.json").read_bytes() == before


@pytest.mark.thorough
def test_a_killed_run_has_lost_time(tmp_path):
    running = start(tmp_path / "run", "--config.checkpoint_every=192").logs(10)
    running.kill()
    running.end()
    ended = train(tmp_path / "run", "--config.checkpoint_every=192")
    assert ended.code == 0, ended.said
    document = json.loads((tmp_path / "run" / "goodput.json").read_text())
    assert document["restarts"] == 1
    assert document["seconds"]["lost"] > 0
    first, last = document["starts"]
    assert document["wall_s"] == pytest.approx(last["updated"] - first["began"], rel=0.02, abs=0.2)
    assert first["updated"] < last["began"]
    assert document["steps"] == 12
