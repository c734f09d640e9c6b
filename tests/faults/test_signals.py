"""Signals at every moment of a run: all is saved, the exit code is 75, nothing differs later."""

import contextlib
import itertools
import signal
import subprocess
import sys
import time

import pytest

from tests.runs import ROOT, digest, start, train

_ENDS = """
import atexit, os, signal, sys, types
from resnet_jax.checkpoint.stop import StopRequest
from resnet_jax.cli.common.exits import exit_code_of
from resnet_jax.errors import WriteError

def storm():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) * 100:
        os.kill(os.getpid(), number)

class Late:
    def __del__(self):
        storm()

def run():
    if sys.argv[1] == "fails":
        raise WriteError("The disk is full.")
    return types.SimpleNamespace(stopped_early=sys.argv[1] == "stops")

late = Late()
atexit.register(storm)
with StopRequest() as stop:
    code = exit_code_of(run)
    storm()
sys.exit(code)
"""


@pytest.mark.parametrize(("how", "code"), [("finishes", 0), ("stops", 75), ("fails", 73)])
def test_signals_after_the_end_of_a_run_do_not_change_its_exit_code(how, code):
    """Not even while the interpreter shuts down."""
    command = [sys.executable, "-c", _ENDS, how]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.thorough
@pytest.mark.parametrize(
    "point",
    [
        "resnet_jax.data.loaders.in_memory:InMemoryLoader.take:4",
        "resnet_jax.train.evaluate:Evaluator.__call__:3",
        "resnet_jax.checkpoint.checkpointer:Checkpointer.save:2",
        "resnet_jax.checkpoint.checkpointer:Checkpointer.settle:2",
    ],
)
def test_a_signal_loses_nothing(point, whole, tmp_path, record_property):
    ended = train(tmp_path / "run", fault=f"{point}:term")
    record_property("saw", ended.last_line)
    assert ended.code == 75, ended.said
    assert "the same command goes on from here" in ended.said
    assert train(tmp_path / "run").code == 0
    assert digest(tmp_path / "run") == digest(whole)


@pytest.mark.thorough
def test_a_second_signal_changes_nothing(whole, tmp_path):
    running = start(tmp_path / "run").logs(2)
    running.signal(signal.SIGTERM).says("stopping at the next safe point")
    running.signal(signal.SIGTERM)
    ended = running.end()
    assert ended.code in (0, 75), ended.said  # all twelve steps may be done by now
    assert train(tmp_path / "run").code == 0
    assert digest(tmp_path / "run") == digest(whole)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("numbers", "codes"),
    [((signal.SIGTERM, signal.SIGHUP), (0, 75)), ((signal.SIGINT,), (0, 75, 130))],
)
def test_a_storm_of_signals_loses_nothing(numbers, codes, whole, tmp_path):
    """A second Ctrl-C gives up; whatever comes after that is no crash either."""
    running, sent = start(tmp_path / "run").logs(2), itertools.cycle(numbers)
    while running.alive():
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            running.signal(next(sent))
        time.sleep(0.002)
    ended = running.end()
    assert ended.code in codes, ended.said
    assert train(tmp_path / "run").code == 0
    assert digest(tmp_path / "run") == digest(whole)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.thorough),
        pytest.param(signal.SIGHUP, marks=pytest.mark.thorough),
        signal.SIGTERM,
    ],
)
def test_any_signal_to_stop_saves(number, tmp_path):
    running = start(tmp_path / "run", "--config.duration=320000", "--config.eval_every=320000")
    ended = running.logs(8).signal(number).end()
    assert (ended.code, "saved in" in ended.last_line) == (75, True), ended.said


@pytest.mark.thorough
def test_a_signal_while_compiling_ends_the_run_within_seconds(tmp_path, record_property):
    deep = "--config.model.stage_sizes=(18,18,18)"
    running = start(tmp_path / "run", deep).says("training images")
    time.sleep(4)  # it is tracing or compiling now, which takes half a minute
    began = time.monotonic()
    ended = running.signal(signal.SIGTERM).end()
    record_property("saw", ended.last_line)
    assert (ended.code, time.monotonic() - began < 8) == (75, True), ended.said
    assert "nothing was lost" in ended.last_line
    assert not (tmp_path / "run" / ".lock").exists()
