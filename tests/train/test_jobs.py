"""Jobs of several processes on this host, connected by gloo: whole runs of train.py."""

import json
import os
import re
import signal
import time

import numpy as np
import portpicker
import pytest

from resnet_jax.checkpoint.stop import StopRequest
from resnet_jax.config.schema import default_config
from resnet_jax.errors import ConfigError
from resnet_jax.logging.metrics_log import read_metrics
from resnet_jax.parallel.job import agreement
from resnet_jax.train.opening import Requests, _job_fingerprint
from tests.data.readers.test_folders import write
from tests.runs import TIMEOUT_S, Ended, Running, start, streamed


def test_processes_compare_config_code_and_versions():
    facts = _job_fingerprint(default_config(), Requests(StopRequest()))
    for name in ("the code of resnet_jax", "the version of jax", "batch_size", "callbacks"):
        assert facts[name] is not None
    assert "data.dir" not in facts  # which may differ from host to host
    reports = [{"host": host, "facts": facts} for host in ("a", "b")]
    agreement._check_equal(reports)
    reports[1]["facts"] = facts | {"the code of resnet_jax": "another"}
    with pytest.raises(
        ConfigError, match=r"differ in the code of resnet_jax: .* in process 1 .b.."
    ):
        agreement._check_equal(reports)


def _start(
    workdir, *arguments, processes, devices, own=(), own_devices=None, own_fault=None
) -> list[Running]:
    """Start a job; `own` are arguments, `own_devices` devices, `own_fault` one of the last process
    alone.
    """
    if processes > 1:
        port = portpicker.pick_unused_port()
        arguments += (
            f"--coordinator=127.0.0.1:{port}",
            f"--num_processes={processes}",
            "--coordinator_timeout_s=300",
        )
    job = []
    for number in range(processes):
        its = [*arguments, *([f"--process_id={number}"] if processes > 1 else [])]
        count, fault = devices, None
        if number == processes - 1:
            its, count, fault = [*its, *own], own_devices or devices, own_fault
        job.append(start(workdir, *its, devices=count, fault=fault))
    return job


def _finish(job: list[Running], *, timeout_s: float = TIMEOUT_S) -> list[Ended]:
    try:
        return [process.end(timeout_s=timeout_s) for process in job]
    finally:
        for process in job:
            process.kill()


def run_job(workdir, *arguments, timeout_s: float = TIMEOUT_S, **options) -> list[Ended]:
    return _finish(_start(workdir, *arguments, **options), timeout_s=timeout_s)


def _codes(job: list[Ended]) -> list[int]:
    return [ended.code for ended in job]


def _errors(ended: Ended) -> list[str]:
    """The lines that are errors; there is never a traceback."""
    assert "Traceback" not in ended.said
    return [line for line in ended.said.splitlines() if line.startswith("error: ")]


_LONG = ("--config.duration=96000", "--config.eval_every=96000", "--config.checkpoint_every=3200")


@pytest.fixture(scope="module", autouse=True)
def standing_still(request, tmp_path_factory):
    """A job whose second process stands still, and since when; None if no test is about the job.

    It begins with the first test of this file, so that it stands still during the others.
    """
    about = "test_a_process_that_stands_still_for_two_minutes_costs_nothing"
    if about not in {item.name for item in request.session.items}:
        yield None
        return
    job = _start(tmp_path_factory.mktemp("still") / "run", *_LONG, processes=2, devices=1)
    try:
        job[0].logs(2)
        job[1].signal(signal.SIGSTOP)
        yield job, time.monotonic()
    finally:
        for process in job:
            process.kill()


def _assert_same_losses(workdir, expected) -> None:
    losses, wanted = (
        [record["loss"] for record in read_metrics(each / "metrics.jsonl")]
        for each in (workdir, expected)
    )
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)


@pytest.mark.thorough
def test_a_job_stopped_and_resumed_on_other_numbers_of_processes_is_the_same_run(whole, tmp_path):
    """Two processes of four devices, four of one, then one: order, augmentation, scores agree."""
    workdir = tmp_path / "run"
    first = run_job(
        *(workdir, "--stop_at_step=5", "--config.mesh.fsdp=2", "--profile=2:3"),
        processes=2,
        devices=4,
    )
    assert _codes(first) == [75, 75], first
    assert "stopped at step 5 of 12" in first[0].said
    # One process speaks for all; only gloo, which CPUs use, has a word of its own.
    assert not re.search("resnet|step|stopped", first[1].said)
    (trace,) = (workdir / "tensorboard" / "plugins" / "profile").iterdir()
    assert len(list(trace.glob("*.xplane.pb"))) == 1  # of the process that writes
    second = run_job(workdir, "--stop_at_step=9", processes=4, devices=1)
    assert _codes(second) == [75] * 4, second
    assert "resuming" in second[0].said
    last = run_job(workdir, processes=1, devices=2)
    assert _codes(last) == [0], last

    keys = ("step", "split", "examples", "weights")
    records, expected = (
        [[record.get(key) for key in keys] for record in read_metrics(each / "metrics.jsonl")]
        for each in (workdir, whole)
    )
    assert records == expected
    _assert_same_losses(workdir, whole)
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["final"]["test"]["examples"] == 100


@pytest.mark.thorough
def test_a_job_of_two_processes_runs_to_its_end(whole, tmp_path):
    """Exact evaluation and one writer, images sent from the hosts, kernels split over both."""
    workdir = tmp_path / "run"
    fields = ("--config.data.resident=False", "--config.mesh.fsdp=4")
    job = run_job(workdir, *fields, processes=2, devices=2)
    assert _codes(job) == [0, 0], job
    _assert_same_losses(workdir, whole)
    summary = json.loads((workdir / "summary.json").read_text())
    assert (summary["hardware"]["processes"], summary["hardware"]["devices"]) == (2, 4)
    assert summary["final"]["test"]["examples"] == 100
    assert len(list((workdir / "tensorboard").iterdir())) == 1


@pytest.mark.thorough
def test_a_job_decodes_on_each_host_what_its_devices_need(tmp_path):
    """Two processes, of which each decodes half of a batch, go on where one stopped."""
    images = write(tmp_path / "images", {"cat": 40, "dog": 40}, shape=(12, 14))
    fields = streamed(images)
    job = [run_job(tmp_path / "one", *fields, processes=1, devices=4)]
    job += [run_job(tmp_path / "two", *fields, "--stop_at_step=5", processes=1, devices=2)]
    assert [_codes(ended) for ended in job] == [[0], [75]], job
    last = run_job(tmp_path / "two", *fields, processes=2, devices=2)
    assert _codes(last) == [0, 0], last
    _assert_same_losses(tmp_path / "two", tmp_path / "one")


@pytest.mark.thorough
def test_a_damaged_part_that_one_process_alone_reads_is_set_aside_by_all(tmp_path):
    workdir = tmp_path / "run"
    fields = ("--config.model.width=32", "--config.mesh.fsdp=2", "--config.checkpoint_every=32")
    job = run_job(workdir, "--stop_at_step=3", *fields, processes=2, devices=1)
    assert _codes(job) == [75, 75], job
    for part in (workdir / "checkpoints/3/state/ocdbt.process_1/d").iterdir():
        os.truncate(part, 10)
    job = run_job(workdir, "--stop_at_step=4", *fields, processes=2, devices=1)
    assert _codes(job) == [75, 75], job
    assert "The checkpoint of step 3 is damaged" in job[0].said
    assert f"resuming {workdir} at step 2" in job[0].said
    kept = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert {"3", "3.corrupt", "4"} <= kept


@pytest.mark.thorough
def test_a_signal_to_one_process_stops_all_of_them_at_the_same_step(tmp_path):
    workdir = tmp_path / "run"
    job = _start(workdir, *_LONG, processes=2, devices=1)
    job[0].logs(2)
    job[1].signal(signal.SIGTERM)
    ended = _finish(job)
    assert _codes(ended) == [75, 75], ended
    saved = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal())
    assert f"stopped at step {saved:,} of" in ended[0].said


def test_different_numbers_of_devices_are_named(tmp_path):
    for ended in run_job(tmp_path / "run", processes=2, devices=1, own_devices=2):
        assert ended.code == 78, ended
        (line,) = _errors(ended)
        assert "number of devices: 1 in process 0, 2 in process 1" in line


@pytest.mark.thorough
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_within_seconds(victim, tmp_path):
    """With exit code 71 and one line, whichever it was; what was saved is intact."""
    job = _start(tmp_path / "run", *_LONG, processes=2, devices=1)
    job[0].logs(2)
    job[victim].kill()
    killed = time.monotonic()
    other = _finish(job)[1 - victim]
    assert time.monotonic() - killed < 100
    assert other.code == 71, other
    (line,) = _errors(other)
    assert f"Process {victim} has ended: its connection broke." in line


# More than it takes to compile, on a busy host too; less than gloo waits by itself.
_PATIENCE_S = 18
_IMPATIENT = (*_LONG, f"--config.hang_timeout_s={_PATIENCE_S}")


@pytest.mark.thorough
@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_process_ends_the_others_in_time(victim, tmp_path, record_property):
    """It lives and its connections stand, but it never answers."""
    job = _start(tmp_path / "run", *_IMPATIENT, processes=2, devices=1)
    try:
        job[0].logs(2)
        job[victim].signal(signal.SIGSTOP)
        stopped = time.monotonic()
        other = job[1 - victim].end()
        assert time.monotonic() - stopped < _PATIENCE_S + 100
        assert other.code == 71, other
        (line,) = _errors(other)
        record_property("saw", line)
        assert f"no progress for {_PATIENCE_S} s (hang_timeout_s) while training steps" in line
        assert "where each thread is" in other.said
        assert "loop.py" in other.said  # the main thread, waiting for the step
        # Once it goes on, it learns that it's alone.
        woken = job[victim].signal(signal.SIGCONT).end()
        assert woken.code == 71, woken
    finally:
        for process in job:
            process.kill()


@pytest.mark.thorough
def test_a_process_that_sleeps_for_ever_ends_all_in_time(tmp_path):
    fault = "resnet_jax.data.loaders.in_memory:InMemoryLoader.take:4:hang"
    job = run_job(tmp_path / "run", *_IMPATIENT, processes=2, devices=1, own_fault=fault)
    assert _codes(job) == [71, 71], job
    for ended in job:
        (line,) = _errors(ended)
        assert "no progress" in line or "has ended" in line
    assert any("where each thread is" in ended.said for ended in job)


@pytest.mark.parametrize(
    ("own", "codes", "messages"),
    [
        (
            ["--config.schedule.base_lr=0.3"],
            [78, 78],
            ["Processes differ in schedule.base_lr: it is 0.1 in process 0"] * 2,
        ),
        (
            ["--workdir={other}"],
            [73, 73],
            ["Processes 1 don't see what process 0 writes to"] * 2,
        ),
        (
            ["--config.data.train=trian"],
            [71, 78],
            ["Process 1 ({host}) has failed: split 'trian'", "Did you mean 'train'"],
        ),
    ],
    ids=["config", "workdir", "failure"],
)
def test_processes_that_differ_end_before_the_first_step(own, codes, messages, tmp_path):
    own = [argument.format(other=tmp_path / "other") for argument in own]
    job = run_job(tmp_path / "run", processes=2, devices=1, own=own)
    assert _codes(job) == codes, job
    for ended, message in zip(job, messages, strict=True):
        assert "step " not in ended.said
        (line,) = _errors(ended)
        assert message.format(host=os.uname().nodename) in line
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.thorough
def test_a_process_that_stands_still_for_two_minutes_costs_nothing(standing_still):
    """As one on a host that was suspended; JAX by itself would have aborted the others by then."""
    job, since = standing_still
    time.sleep(max(0.0, since + 120 - time.monotonic()))
    assert all(process.alive() for process in job)
    job[1].signal(signal.SIGCONT)
    job[0].logs(8).signal(signal.SIGTERM)
    assert _codes([process.end() for process in job]) == [75, 75]
