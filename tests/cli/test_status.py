"""resnet-jax status: five lines for a run, a line each for several."""

import json
import os
import re
import time

import pytest

from resnet_jax.checkpoint.lock import LOCK
from resnet_jax.checkpoint.lock_holder import this_process
from resnet_jax.cli.main import main
from tests.cli.mistakes import assert_one_line
from tests.logging.test_status import SCORED, TRAIN, _process, _write


@pytest.fixture
def workdir(tmp_path):
    """A run that this process trains."""
    workdir = tmp_path / "run"
    _write(workdir, process=_process(), holder=this_process())
    (workdir / "checkpoints" / "16").mkdir(parents=True)
    os.utime(workdir / "checkpoints" / "16", (time.time() - 300,) * 2)
    return workdir


def _lines(capsys, *arguments):
    assert main(["status", *map(str, arguments)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


def test_what_a_run_does_is_said_in_five_lines(workdir, capsys):
    doing, progress, scores, checkpoint, log = _lines(capsys, workdir)
    holder = f"process {os.getpid()} on "
    assert doing.startswith(f"{workdir}: resnet20 on digits, running: {holder}")
    assert doing.endswith(" on 1 × cpu")
    assert progress == "step 20 of 100 (20%)  epoch 0.50  64 img/s  ETA 0:40"
    assert scores == (
        "training: loss 2.0000, top-1 25.00 %"
        "  validation: loss 1.5000, top-1 50.00 % at step 10  best 50.00 % at step 10"
    )
    assert checkpoint == "checkpoint: step 16, 5 min ago"
    assert re.fullmatch(
        r"last log line: \d+ s ago  lock: held, renewed \d+ s ago  goodput: 75%, restarts: 2", log
    )


def test_the_same_as_json(workdir, capsys):
    document = json.loads("\n".join(_lines(capsys, workdir, "--json")))
    assert (document["state"], document["step"], document["total_steps"]) == ("running", 20, 100)
    assert (document["train"], document["scores"]) == (TRAIN, {"validation": SCORED})
    assert document["checkpoint"]["step"] == 16
    assert document["problems"] == []


def test_a_dead_run_says_why(workdir, capsys):
    (workdir / LOCK).unlink()
    assert "ended without a word (killed, stuck, or its host" in _lines(capsys, workdir)[0]
    ended = _process(ended=5.0, error="The loss of step 3 isn't finite.")
    (workdir / "process.json").write_text(json.dumps(ended))
    lines = _lines(capsys, workdir)
    assert lines[0].endswith("digits, failed: The loss of step 3 isn't finite.")
    assert lines[-1].endswith("lock: free  goodput: 75%, restarts: 2")
    assert "ETA" not in lines[1]


def test_a_damaged_file_is_a_line(workdir, capsys):
    (workdir / "metrics.jsonl").write_text("@@@\n")
    lines = _lines(capsys, workdir)
    assert lines[1] == "step 0 of 100 (0%)"
    assert lines[-1].startswith("problem: Line 1 of ")
    (workdir / "config.json").write_text("\x1b[31m{")
    assert "problem: config.json is damaged: it isn't JSON of this package." in _lines(
        capsys, workdir
    )


def test_the_runs_of_a_folder_have_a_line_each(workdir, tmp_path, capsys):
    _write(tmp_path / "other", records=(), process=_process(ended=1.0), summary={"steps": 100})
    other, run = _lines(capsys, tmp_path)
    assert other == f"{tmp_path}/other: finished  step 0 of 100 (0%)"
    assert run.startswith(f"{workdir}: running: process {os.getpid()} on ")
    assert run.endswith("  step 20 of 100 (20%)  validation 50.00 %  ETA 0:40")
    document = json.loads("\n".join(_lines(capsys, tmp_path, "--json")))
    assert [one["state"] for one in document["runs"]] == ["finished", "running"]


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("nothing", 78, "isn't the directory of a run, and has none below it"),
        ("", 78, "isn't the directory of a run, and has none below it"),
        ("http://x/y", 64, "http://x/y isn't a folder's name"),
    ],
)
def test_mistakes_are_one_line(name, code, message, tmp_path, capsys):
    workdir = name if "://" in name else str(tmp_path / name)
    assert_one_line(["status", workdir], code, message, capsys)
