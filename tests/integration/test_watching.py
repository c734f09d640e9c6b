"""What is seen from outside of a run: while it trains, and however it ends."""

import json
import re
import signal
import time

import pytest
from etils import epath

import resnet_jax
from resnet_jax.cli.main import main
from resnet_jax.logging.status import read_status
from tests.runs import start, train

_LONG = ("--config.duration=320000",)  # 10,000 steps


@pytest.mark.thorough
def test_the_status_of_a_run_in_each_state_of_its_life(tmp_path, capsys):
    workdir = tmp_path / "run"
    folder = epath.Path(workdir)
    running = start(workdir, *_LONG)
    states = set()
    while running.alive() and "running" not in states:
        if (workdir / ".lock").exists():
            states.add(read_status(folder).state)
        time.sleep(0.005)
    assert states == {"starting", "running"}
    running.logs(8)
    status = read_status(folder)
    assert status.state == "running"
    assert f"process {running.pid} on " in status.holder
    assert status.step >= 8
    assert status.total_steps == 10_000
    assert status.checkpoint.step >= 2
    assert status.eta_s > 0
    assert main(["status", str(workdir)]) == 0
    assert capsys.readouterr().out.count("\n") == 5

    running.kill()
    assert running.end().code == -signal.SIGKILL
    status = read_status(folder)
    assert (status.state, status.lock, status.eta_s) == ("lost", "stale", None)

    running = start(workdir, *_LONG).says("resuming")
    running.logs(status.step // 2 * 2 + 20)
    assert running.signal(signal.SIGTERM).end().code == 75
    status = read_status(folder)
    assert (status.state, status.lock) == ("stopped", "free")
    assert status.checkpoint.step >= status.step

    step = status.checkpoint.step + 3
    assert train(workdir, *_LONG, fault=f"step:{step}:nan").code == 70
    status = read_status(folder)
    assert status.state == "failed"
    assert "finite" in status.reason


@pytest.mark.thorough
def test_the_status_of_a_finished_run(whole):
    before = {path: path.stat().st_mtime_ns for path in [whole, *whole.rglob("*")]}
    status = read_status(epath.Path(whole))
    assert (status.state, status.step, status.total_steps) == ("finished", 12, 12)
    assert status.problems == ()
    summary = json.loads((whole / "summary.json").read_text())
    assert status.scores["test"]["top1"] == summary["final"]["test"]["top1"]
    assert status.best["step"] == summary["best"]["step"]
    assert before == {path: path.stat().st_mtime_ns for path in [whole, *whole.rglob("*")]}


@pytest.mark.thorough
def test_the_status_of_a_run_in_a_bucket(bucket, tiny_config, capsys):
    tiny_config.checkpoint_every = 32.0
    resnet_jax.fit(tiny_config, "gs://bucket/watched", stop_at_step=6)
    status = read_status(epath.Path("gs://bucket/watched"))
    assert (status.state, status.step, status.total_steps) == ("stopped", 5, 12)
    assert (status.checkpoint.step, status.lock, status.problems) == (6, "free", ())
    (bucket / "watched" / "checkpoints" / "6" / "commit_success.txt").unlink(missing_ok=True)
    capsys.readouterr()
    assert main(["status", "gs://bucket/watched"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("gs://bucket/watched: resnet20 on digits, stopped")
    assert re.search(r"^checkpoint: step 5$", printed, re.MULTILINE)  # a bucket's folder has no age
    assert main(["status", "gs://bucket/nothing"]) == 78
    assert re.match("error: gs://bucket/nothing isn't the directory", capsys.readouterr().err)
