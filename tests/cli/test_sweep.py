"""resnet-jax sweep: with processes that stand for runs, and with runs that are really trained."""

import csv
import json
import os
import signal
import sys
import threading
import time

import pytest

import resnet_jax
from resnet_jax.cli import sweep
from resnet_jax.cli.main import main
from resnet_jax.train.losses import LOSSES
from resnet_jax.train.metrics import REGISTERED
from tests.cli.mistakes import assert_one_line
from tests.conftest import make_tiny_config
from tests.research import fake_child

_FILE = """
from tests.conftest import make_tiny_config

def get_config(which=""):
    return make_tiny_config()

def sweep(which="1,2"):
    for seed in which.split(","):
        yield {"seed": int(seed)}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny_sweep.py"
    path.write_text(_FILE)
    return path


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(sweep, "_CHILD", [sys.executable, fake_child.__file__])


def _rows(workdir):
    with (workdir / "sweep.csv").open() as table:
        return list(csv.DictReader(table))


def test_a_failure_is_one_line_and_the_exit_code(file, fake, tmp_path, capsys):
    workdir = tmp_path / "runs"
    assert main(["sweep", f"--config={file}:9,1,70", f"--workdir={workdir}"]) == 128 + 9
    captured = capsys.readouterr()
    assert "seed=9: failed with exit code 137" in captured.out
    assert "seed=70: failed with exit code 70: The loss of step 3 isn't finite.\n" in captured.out
    assert "1 of 3 runs are finished" in captured.out
    assert [row["run"] for row in _rows(workdir)] == ["seed=1"]


def test_a_file_may_register_names_itself(file, fake, tmp_path):
    """It is imported for the config, and again for its sweep."""
    lines = (
        "from resnet_jax import register_metric\n"
        "def doubt(logits, labels):\n"
        "    return 1 - logits.max(axis=-1)\n"
        "register_metric('doubt', doubt)\n"
    )
    file.write_text(lines + file.read_text())
    assert main(["sweep", f"--config={file}:1", f"--workdir={tmp_path / 'runs'}"]) == 0
    REGISTERED.pop("doubt")


@pytest.mark.thorough
def test_finished_runs_are_left_alone_and_gathered_again(file, fake, tmp_path, capsys):
    workdir = tmp_path / "runs"
    arguments = [f"--workdir={workdir}", "--processes=2"]
    assert main(["sweep", f"--config={file}", *arguments]) == 0
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("*/*.json")}
    (workdir / "sweep.csv").unlink()
    assert main(["sweep", f"--config={file}:1,2,3", *arguments, "--json"]) == 0
    captured = capsys.readouterr()
    assert "3 runs, of which 2 are finished" in captured.err
    assert captured.err.count("begins") == 1
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert [row["top1"] for row in _rows(workdir)] == ["0.91", "0.92", "0.93"]
    document = json.loads(captured.out)
    assert document["finished"] == 3
    assert document["groups"][0]["seeds"] == [1, 2, 3]
    on_record = json.loads((workdir / "sweep.json").read_text())
    assert on_record["groups"] == document["groups"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--workdir={runs}"], 64, "--config is missing"),
        (["--config={file}"], 64, "--workdir"),
        (["--config={file}", "--workdir={runs}", "--processes=0"], 64, "--processes is 0"),
        (
            ["--config={file}", "--workdir={runs}", "--config.seed=3"],
            64,
            "seed=1 of the sweep sets",
        ),
        (
            ["--config={file}:1,1", "--workdir={runs}"],
            78,
            "Two runs of the sweep are named 'seed=1'",
        ),
        (["--config={file}:x", "--workdir={runs}"], 78, "line 9: ValueError: invalid literal"),
        (["--config=configs/digits.py", "--workdir={runs}"], 78, "no function sweep()"),
        (
            ["--config={file}", "--workdir={runs}", "--config.schedule.name=sine"],
            78,
            "seed=1: schedule.name is 'sine'",
        ),
    ],
)
def test_mistakes_are_one_line(arguments, code, message, file, tmp_path, capsys):
    runs = tmp_path / "runs"
    filled = [one.format(file=file, runs=runs) for one in arguments]
    assert_one_line(["sweep", *filled], code, message, capsys)
    assert not runs.exists()


@pytest.mark.thorough
def test_runs_are_trained_and_a_stopped_one_goes_on(tmp_path, capsys):
    """Beside one that can't be trained."""
    workdir, path = tmp_path / "runs", tmp_path / "real_sweep.py"
    path.write_text(
        "from tests.conftest import make_tiny_config as get_config\n"
        "def sweep():\n"
        "    yield {'name': 'stopped', 'seed': 0}\n"
        "    yield {'name': 'too_fast', 'schedule.base_lr': 1e30}\n"
    )
    assert resnet_jax.fit(make_tiny_config(), workdir / "stopped", stop_at_step=8).stopped_early
    begun = (workdir / "stopped" / "metrics.jsonl").read_text().splitlines()
    capsys.readouterr()
    assert main(["sweep", f"--config={path}", f"--workdir={workdir}", "--processes=2"]) == 70
    captured = capsys.readouterr()
    assert "too_fast: failed with exit code 70" in captured.err
    assert "stopped: finished" in captured.err
    records = (workdir / "stopped" / "metrics.jsonl").read_text().splitlines()
    assert records[: len(begun)] == begun  # times included: it wasn't begun anew
    assert json.loads(records[-1])["split"] == "test"
    summary = json.loads((workdir / "stopped" / "summary.json").read_text())
    assert summary["command"].endswith(" ".join(sys.argv[1:]))  # the sweep's, not the child's
    rows = _rows(workdir)
    assert {(row["split"], row["weights"]) for row in rows} == {
        (split, weights) for split in ("validation", "test") for weights in ("raw", "ema", "best")
    }
    (last,) = [row for row in rows if (row["split"], row["weights"]) == ("test", "raw")]
    assert float(last["top1"]) == summary["final"]["test"]["top1"]
    assert (last["step"], last["examples"], last["seed"]) == ("12", "100", "0")
    assert last["schedule.base_lr"] == str(make_tiny_config().schedule.base_lr)


@pytest.mark.thorough
@pytest.mark.parametrize("task", [[], ["--task=0"]], ids=["all", "task"])
def test_runs_know_the_names_that_their_file_registers(task, tmp_path, capsys):
    path = tmp_path / "own_loss.py"
    path.write_text(
        "import optax\n"
        "from resnet_jax import register_loss\n"
        "from tests.conftest import make_tiny_config\n"
        "register_loss('own', lambda logits, targets: optax.l2_loss(logits, targets).sum(-1))\n"
        "def get_config():\n"
        "    config = make_tiny_config()\n"
        "    config.duration = config.eval_every = 4 * 32.0\n"
        "    config.loss = 'own'\n"
        "    return config\n"
        "def sweep():\n"
        "    yield {}\n"
    )
    try:
        arguments = [f"--config={path}", f"--workdir={tmp_path / 'runs'}", *task]
        assert main(["sweep", *arguments]) == 0, capsys.readouterr()
    finally:
        LOSSES.pop("own")
    assert json.loads((tmp_path / "runs/base/summary.json").read_text())["config"]["loss"] == "own"


_TASKS = ["--workdir={runs}", "--config={file}:1,2,3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task=3"], "--task is 3; the sweep has 3 runs, --task=0 to 2."),
        (["--task=-1"], "--task is -1; the sweep has 3 runs"),
        (["--task=x"], "--task: invalid int value: 'x'"),
        (["--task=1", "--processes=2"], "not allowed with argument"),
        (["--task=1", "--collect"], "not allowed with argument"),
    ],
)
def test_mistakes_of_tasks_are_one_line(arguments, message, file, tmp_path, capsys):
    runs = tmp_path / "runs"
    filled = [one.format(file=file, runs=runs) for one in (*_TASKS, *arguments)]
    assert_one_line(["sweep", *filled], 64, message, capsys)
    assert not runs.exists()


def test_a_task_trains_its_run_and_who_collects_writes_the_table(file, fake, tmp_path, capsys):
    runs = tmp_path / "runs"
    arguments = [one.format(file=file, runs=runs) for one in _TASKS]
    assert main(["sweep", *arguments, "--task=1"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "run 1 of 0 to 2, seed=2, is finished"
    assert [path.name for path in runs.iterdir()] == ["seed=2"]

    assert main(["sweep", *arguments, "--collect"]) == 75  # there are others
    captured = capsys.readouterr()
    assert "begins" not in captured.err
    assert "1 of 3 runs are finished\nseed=1: not begun\nseed=3: not begun\n" in captured.out
    assert [row["run"] for row in _rows(runs)] == ["seed=2"]

    summary = runs / "seed=2" / "summary.json"
    before = summary.stat().st_mtime_ns
    assert [main(["sweep", *arguments, f"--task={task}"]) for task in range(3)] == [0, 0, 0]
    assert summary.stat().st_mtime_ns == before  # a finished run is left alone
    capsys.readouterr()
    assert main(["sweep", *arguments, "--collect", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["finished"], document["left"]) == (3, {})
    assert [row["top1"] for row in _rows(runs)] == ["0.91", "0.92", "0.93"]


def test_a_task_that_fails_ends_with_the_code_of_its_run(file, fake, tmp_path, capsys):
    workdir = tmp_path / "runs"
    arguments = [f"--config={file}:70,1", f"--workdir={workdir}"]
    assert main(["sweep", *arguments, "--task=0"]) == 70
    captured = capsys.readouterr()
    assert "failed with exit code 70: The loss of step 3 isn't finite." in captured.out
    assert "the same command goes on\n" in captured.out
    assert not list(workdir.glob("sweep.*"))


def test_what_cannot_be_collected_is_one_line(file, tmp_path, capsys):
    arguments = ["sweep", f"--config={file}:1", f"--workdir={tmp_path}/none", "--collect"]
    assert_one_line(arguments, 73, "none can't be written: No such file or directory", capsys)


def test_who_cannot_write_collects_the_status_all_the_same(file, tmp_path, capsys):
    (tmp_path / "sweep.csv").mkdir()
    arguments = ["sweep", f"--config={file}:1,2", f"--workdir={tmp_path}", "--collect"]
    assert main(arguments) == 73
    said = capsys.readouterr()
    assert said.out == "0 of 2 runs are finished\nseed=1: not begun\nseed=2: not begun\n"
    assert said.err.startswith(f"error: {tmp_path} can't be written: ")
    assert main([*arguments, "--json"]) == 73
    document = json.loads(capsys.readouterr().out)
    assert (document["left"], document["files"]) == ({"seed=1": None, "seed=2": None}, [])
    assert "can't be written" in document["error"]


def test_a_task_that_is_told_to_stop_ends_with_75(file, fake, tmp_path, capsys):
    workdir = tmp_path / "runs"
    pid_file = workdir / "seed=75" / "pid"

    def stop():
        while not (pid_file.exists() and pid_file.read_text()):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    assert main(["sweep", f"--config={file}:75,1", f"--workdir={workdir}", "--task=0"]) == 75
    assert "run 0 of 0 to 1, seed=75, isn't finished" in capsys.readouterr().out
