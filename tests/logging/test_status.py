"""The status of runs: from the files that a run leaves, from cut files and from junk."""

import dataclasses
import json
import os
import pwd
import random
import socket
import time

import pytest
from etils import epath

from resnet_jax.checkpoint.lock import LOCK
from resnet_jax.checkpoint.lock_holder import Holder, this_process
from resnet_jax.errors import ConfigError
from resnet_jax.logging.recorded_goodput import RecordedGoodput
from resnet_jax.logging.status import read_status

TRAIN = {"step": 20, "epoch": 0.5, "examples": 640, "split": "train", "loss": 2.0, "top1": 0.25}
TRAIN |= {"lr": 0.1, "img_per_s": 64.0, "wall_s": 10.0}
SCORED = {"step": 10, "epoch": 0.25, "split": "validation", "weights": "raw", "wall_s": 5.0}
SCORED |= {"examples": 100, "loss": 1.5, "top1": 0.5, "top5": 1.0}
CONFIG = {"model": {"name": "resnet20"}, "data": {"name": "digits"}, "batch_size": 32}

GOODPUT = {"goodput": 0.75, "wall_s": 4.0, "seconds": {"step": 3.0, "lost": 1.0}, "restarts": 2}


def _process(**fields):
    process = {"host": socket.gethostname(), "pid": os.getpid(), "processes": 1, "steps": 100}
    process |= {"devices": "1 × cpu", "start_step": 0, "started": time.time() - 10, "ended": None}
    return process | {"error": None} | fields


def _write(folder, *, records=(SCORED, TRAIN), process=None, summary=None, holder=None):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    for name, document in (("process.json", process), ("summary.json", summary)):
        if document is not None:
            (folder / name).write_text(json.dumps(document))
    (folder / "goodput.json").write_text(json.dumps(GOODPUT))
    if holder:
        (folder / LOCK).write_text(holder.to_json())
    return epath.Path(folder)


def _other_host():
    return Holder(host="far", here="", pid=7, since="2026-01-01 00:00:00 +0000", token="abc")


def test_a_run_that_is_under_way(tmp_path):
    folder = _write(tmp_path / "run", process=_process(), holder=this_process())
    (tmp_path / "run" / "checkpoints" / "8").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "16").mkdir()
    (tmp_path / "run" / "checkpoints" / "24.orbax-checkpoint-tmp").mkdir()
    status = read_status(folder)
    assert (status.state, status.lock, status.step, status.total_steps) == (
        *("running", "held"),
        *(20, 100),
    )
    assert (status.model, status.data, status.devices) == ("resnet20", "digits", "1 × cpu")
    assert status.holder.startswith(f"process {os.getpid()} on {socket.gethostname()}, since ")
    assert status.eta_s == pytest.approx(80 * 32 / 64)  # steps left × images / images per second
    assert (status.train, status.scores, status.best) == (TRAIN, {"validation": SCORED}, SCORED)
    assert (status.checkpoint.step, status.epoch) == (16, 0.5)
    assert 0 <= status.checkpoint.age_s < 60
    assert 0 <= status.log_age_s < 60
    assert 0 <= status.lock_age_s < 60
    assert status.goodput == RecordedGoodput(0.75, {"step": 3.0, "lost": 1.0}, 2)
    assert status.problems == ()


@pytest.mark.parametrize(
    ("files", "state", "lock"),
    [
        ({"holder": "own"}, "running", "held"),  # of an older version
        ({"holder": "own", "process": {"pid": 1}}, "starting", "held"),
        ({"holder": "own", "process": {"ended": 5.0}}, "starting", "held"),
        ({"holder": "own", "process": {"start_step": None, "steps": None}}, "starting", "held"),
        ({"holder": "far", "process": {"token": "abc"}}, "running", "held"),
        # The process before in a pod of the same name.
        ({"holder": "far", "process": {"host": "far", "pid": 7, "token": "b"}}, "starting", "held"),
        ({"holder": "far", "process": {"host": "far", "pid": 7}}, "running", "held"),
        ({"holder": "dead", "process": {}}, "lost", "stale"),
        ({"process": {}}, "lost", "free"),
        ({"process": {"ended": 5.0}}, "stopped", "free"),
        ({"process": {"ended": 5.0, "error": "The loss is NaN."}}, "failed", "free"),
        ({"process": {"ended": 5.0}, "summary": {"steps": 100}}, "finished", "free"),
        ({"summary": {"steps": 100}}, "finished", "free"),
        ({}, "unknown", "free"),
    ],
)
def test_the_states_of_a_run(files, state, lock, tmp_path):
    far = _other_host()
    holder = {"own": this_process(), "far": far, "dead": far, None: None}[files.get("holder")]
    process = _process(**files["process"]) if "process" in files else None
    folder = _write(tmp_path, process=process, summary=files.get("summary"), holder=holder)
    if files.get("holder") == "dead":
        os.utime(tmp_path / LOCK, (time.time() - 100,) * 2)  # renewed every 15 s
    status = read_status(folder)
    assert (status.state, status.lock) == (state, lock)
    assert status.reason == ("The loss is NaN." if state == "failed" else "")
    assert (status.eta_s is not None) == (state == "running" and process is not None)


def test_a_run_that_has_only_a_lock_is_starting(tmp_path):
    (tmp_path / LOCK).write_text(this_process().to_json())
    status = read_status(epath.Path(tmp_path))
    assert (status.state, status.step, status.model) == ("starting", 0, None)


@pytest.mark.parametrize("name", ["", "nothing", "file", "file/below"])
def test_what_is_no_run_is_refused(name, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="isn't the directory of a run"):
        read_status(epath.Path(tmp_path / name))


def test_the_scores_of_the_best_checkpoint_come_last_and_are_not_where_the_run_is(tmp_path):
    best = SCORED | {"split": "test", "weights": "best"}
    status = read_status(_write(tmp_path, records=(SCORED, TRAIN, best)))
    assert status.step == 20
    assert list(status.scores) == ["validation", "test_best"]


def test_several_seeds_share_the_speed(tmp_path):
    seeds = {"seeds": {"loss": [2.0, 2.0], "top1": [0.2, 0.3]}, "std": {"loss": 0.0, "top1": 0.07}}
    record = TRAIN | seeds
    folder = _write(tmp_path, records=[record], process=_process(), holder=this_process())
    assert read_status(folder).eta_s == pytest.approx(80 * 2 * 32 / 64)


FILES = ("config.json", "metrics.jsonl", "process.json", "summary.json", "goodput.json", LOCK)
_JUNK = [
    b"",
    b"{",
    b"[" * 100_000,
    b"null",
    b"[]",
    b"\0" * 100,
    b"\xff\xfe",
    b'{"steps": 1e999}',
    b'{"steps": -1, "started": "a", "ended": [], "error": {}, "pid": 1.5}',
    b'{"steps": ' + b"9" * 4000 + b"}",
    b'{"steps": ' + b"9" * 5000 + b"}",
    b'{"steps": NaN}',
    b'{"goodput": NaN, "seconds": {"step": 1e999}, "restarts": 1}',
    b'{"goodput": 1, "seconds": {"step": []}, "restarts": 1}',
    b'{"model": 3, "data": {"name": []}}',
    json.dumps(TRAIN | {"step": 10**400}).encode() + b"\n",
    json.dumps(TRAIN | {"examples": 10**300, "img_per_s": 1e-300}).encode() + b"\n",
    json.dumps(TRAIN | {"img_per_s": 0}).encode() + b"\n",
    json.dumps(TRAIN | {"step": 0}).encode() + b"\n",
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("junk", _JUNK, ids=lambda junk: junk[:24].decode(errors="replace"))
def test_junk_in_a_file_never_ends_in_a_traceback(name, junk, tmp_path):
    folder = _write(tmp_path, process=_process(), summary={"steps": 100}, holder=this_process())
    (tmp_path / name).write_bytes(junk)
    status = read_status(folder)
    assert json.dumps(dataclasses.asdict(status), allow_nan=False)
    assert all(name in problem for problem in status.problems)


def test_a_file_that_is_cut_anywhere_never_ends_in_a_traceback(tmp_path):
    folder = _write(tmp_path, process=_process(), summary={"steps": 100}, holder=this_process())
    whole = {name: (tmp_path / name).read_bytes() for name in FILES}
    rng = random.Random(0)
    for name, content in whole.items():
        for length in rng.sample(range(len(content)), min(25, len(content))):
            (tmp_path / name).write_bytes(content[:length])
            status = read_status(folder)
            assert json.dumps(dataclasses.asdict(status), allow_nan=False)
        (tmp_path / name).write_bytes(content)


@pytest.mark.parametrize("name", [*FILES, "checkpoints"])
def test_what_is_no_regular_file_is_a_problem_and_waits_for_nobody(name, tmp_path):
    folder = _write(tmp_path, process=_process(), summary={"steps": 100}, holder=this_process())
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    (problem,) = read_status(folder).problems
    assert name in problem


def test_files_of_a_user_without_a_name_have_ages_too(tmp_path, monkeypatch):
    """As of a run that was copied from another host, or in a container."""

    def unknown(*_):
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    folder = _write(tmp_path)
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    os.utime(tmp_path / "checkpoints" / "8", (1.0, time.time() - 600))
    status = read_status(folder)
    assert 600 <= status.checkpoint.age_s < 700
    assert 0 <= status.log_age_s < 100


def test_corrupt_checkpoints_are_a_problem(tmp_path):
    folder = _write(tmp_path)
    for name in ("8", "16.corrupt"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    status = read_status(folder)
    assert status.checkpoint.step == 8
    assert status.problems == ("checkpoints has corrupt ones, set aside: 16.corrupt.",)


def test_nothing_is_written(tmp_path):
    folder = _write(tmp_path, process=_process(), holder=_other_host())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.iterdir())}
    read_status(folder)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.iterdir())}
