"""Signals at every moment of a run: all is saved, the exit code is 75, nothing differs later."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time

import pytest
from etils import epath

from resnet_jax import checkpoint
from resnet_jax.checkpoint.stop import NOTHING_LOST, StopRequest
from resnet_jax.errors import StoppedEarly
from resnet_jax.logging.console import TrainingConsole
from tests.runs import ROOT, TIMEOUT_S, Running, digest, start, train

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


_BEFORE_THE_FIRST_STEP = """
import contextlib, gc, os, signal, sys, time
from resnet_jax.checkpoint.stop import StopRequest
from resnet_jax.cli.common.exits import end_early

def interrupted(*_):
    os.kill(os.getpid(), int(sys.argv[2]))
    time.sleep(60)

with StopRequest(end_early) as stop:
    if sys.argv[1] == "before":
        stop.requested = True
    with stop.interrupt_immediately():
        if sys.argv[1] == "garbage collector":
            gc.callbacks.append(interrupted)
            gc.collect()
        with contextlib.suppress(BaseException):
            interrupted()
"""


@pytest.mark.parametrize("where", ["garbage collector", "library", "before"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_before_the_first_step_nothing_swallows_a_signal(where, number):
    command = [sys.executable, "-c", _BEFORE_THE_FIRST_STEP, where, str(int(number))]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert (done.returncode, done.stdout, done.stderr) == (75, "", f"{NOTHING_LOST}\n")


def test_a_signal_that_a_library_swallows_is_raised_again_before_the_first_step():
    """In a program that calls `fit`, whose process isn't ended."""

    def swallow():
        with contextlib.suppress(Exception):
            os.kill(os.getpid(), signal.SIGTERM)

    with StopRequest() as stop, pytest.raises(StoppedEarly), stop.interrupt_immediately():
        swallow()


def test_a_deferred_signal_ends_the_process_afterwards():
    """Training within a context that a signal ends at once saves first."""
    ended = []

    def run():
        with StopRequest(ended.append) as stop, stop.interrupt_immediately("outer"):
            with stop.deferred():
                with stop.interrupt_immediately("inner"):
                    pass
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.1)  # for the thread that ends the process
                assert (stop.requested, ended) == (True, [])
            pytest.fail("goes on")

    with pytest.raises(StoppedEarly, match="outer"):
        run()
    assert ended == ["outer"]


@pytest.mark.parametrize("hangs", [False, True])
def test_what_is_written_before_a_signal_ends_the_process_never_keeps_it(hangs, monkeypatch):
    monkeypatch.setattr(checkpoint.stop, "_FAILURE_S", 0.2)
    done = []

    def write(_):
        if hangs:
            time.sleep(600)
        done.append("written")

    began = time.monotonic()
    with (
        contextlib.suppress(StoppedEarly),
        StopRequest(done.append) as stop,
        stop.on_failure(lambda _: None if hangs else done.append("outer")),
        stop.interrupt_immediately("ended"),
        stop.on_failure(write),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        while "ended" not in done:
            time.sleep(0.01)
    assert done[: done.index("ended")] == ([] if hangs else ["written", "outer"])
    assert time.monotonic() - began < 500


def test_other_signals_dont_end_the_process():
    heard, before = [], signal.signal(signal.SIGUSR1, lambda *_: heard.append("signal"))
    try:
        with StopRequest(heard.append) as stop, stop.interrupt_immediately():
            os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == ["signal"]


def test_a_run_that_stops_before_the_first_step_claims_no_checkpoint(capsys):
    for step, said in ((0, NOTHING_LOST), (2, "stopped at step 2 of 9, saved in run;")):
        TrainingConsole(total_steps=9, start_step=0).stopped(step, epath.Path("run"))
        assert capsys.readouterr().out.startswith(said)


_ENDS_A_SWEEP = """
import itertools, os, signal, sys, threading, time
from resnet_jax.cli import sweep
from resnet_jax.cli.main import main
from resnet_jax.research import workers

def storm():
    for number in itertools.cycle((signal.SIGTERM, signal.SIGHUP)):
        os.kill(os.getpid(), number)
        time.sleep(0.002)

def train_all(*args, stop, **kwargs):
    threading.Thread(target=storm, daemon=True).start()
    while not stop.requested:
        time.sleep(0.01)
    yield from ()

workers.train_all = train_all
collect = sweep._document
sweep._document = lambda *args: (time.sleep(0.3), collect(*args))[1]
sys.exit(main(["sweep", "--config=configs/digits_sweep.py", "--workdir=" + sys.argv[1]]))
"""


def test_a_storm_of_signals_ends_a_sweep_as_one_signal_does(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _ENDS_A_SWEEP, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 75, done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_config_file_that_never_returns_is_interrupted(number, tmp_path):
    config, began = tmp_path / "config.py", tmp_path / "began"
    config.write_text(
        f"import pathlib\n\ndef get_config():\n    pathlib.Path({str(began)!r}).touch()\n"
        "    while True:\n        pass\n"
    )
    running = Running(f"--config={config}", f"--workdir={tmp_path / 'run'}", workdir=tmp_path)
    while not began.exists():
        assert running.alive(), running.said()
        time.sleep(0.01)
    ended = running.signal(number).end()
    assert (ended.code, ended.said) == (75, f"{NOTHING_LOST}\n")


_REPRODUCES = """
import hashlib, sys
from resnet_jax.cli.main import main
from resnet_jax.research import catalogue
from resnet_jax.research.configs import digits
from resnet_jax.research.reproduction import Reproduction

_TINY = {
    "model.stage_sizes": (1, 1), "model.width": 4, "model.stem_width": 4, "log_every": 1,
    "data.train": "train[:64]", "duration": 1e6, "batch_size": 32, "steps_per_dispatch": 1,
}

def compute(runner):
    print("computing", file=sys.stderr, flush=True)
    # As a compilation: minutes in which Python handles no signal, and other threads run.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

def train(runner):
    runner.train({"tiny": digits("resnet20", _TINY)})

for run in (compute, train):
    catalogue.REPRODUCTIONS[run.__name__] = Reproduction(
        name=run.__name__, title="", paper="", claim="", runs={"cpu": run}
    )
sys.exit(main(["reproduce", *sys.argv[1:], "--seeds=1"]))
"""


def _reproduce(names, workdir):
    command = [sys.executable, "-c", _REPRODUCES, *names, f"--workdir={workdir}"]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.thorough), signal.SIGTERM]
)
def test_a_reproduction_that_computes_ends_within_seconds(number, tmp_path):
    with _reproduce(["compute", "train"], tmp_path) as running:
        try:
            assert running.stderr.readline() == "computing\n"
            running.send_signal(number)
            _, said = running.communicate(timeout=300)  # the computation takes longer
        finally:
            running.kill()
    assert said == "stopped; nothing was lost, and the same command goes on\n"
    assert running.returncode == 75


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_reproduction_that_trains_saves_first(number, tmp_path):
    run = tmp_path / "runs" / "cpu" / "tiny"
    with _reproduce(["train", "compute"], tmp_path) as running:
        try:
            while (
                not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").stat().st_size
            ):
                assert running.poll() is None
                time.sleep(0.1)
            running.send_signal(number)
            _, said = running.communicate(timeout=TIMEOUT_S)
        finally:
            running.kill()
    assert f"stopped while training tiny, saved in {run}; the same command goes on" in said
    assert "computing" not in said
    assert running.returncode == 75
    assert list((run / "checkpoints").iterdir())


@pytest.mark.thorough
def test_a_storm_of_signals_ends_a_reproduction_as_one_signal_does(tmp_path):
    """As from a scheduler that is in a hurry while the terminal is closed."""
    records = tmp_path / "runs" / "cpu" / "tiny" / "metrics.jsonl"
    with _reproduce(["train"], tmp_path) as running:
        try:
            while not records.exists() or not records.stat().st_size:
                assert running.poll() is None
                time.sleep(0.1)
            numbers = itertools.cycle((signal.SIGTERM, signal.SIGHUP))
            while running.poll() is None:
                running.send_signal(next(numbers))
                time.sleep(0.002)
            said = running.stderr.read()
        finally:
            running.kill()
    assert running.returncode == 75, said
    assert "the same command goes on from here" in said


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
    running = start(tmp_path / "run").logs(2).signal(signal.SIGTERM)
    while running.alive() and "stopping at the next safe point" not in running.said():
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):  # it has just ended
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
    assert (ended.code, time.monotonic() - began < 60) == (75, True), ended.said
    assert "nothing was lost" in ended.last_line
    assert not (tmp_path / "run" / ".lock").exists()
