"""Runs of all kinds are verified by training parts of them again."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import portpicker
import pytest

import resnet_jax
from resnet_jax.cli.main import main
from resnet_jax.verification.verify import verify_run
from tests.runs import start
from tests.verification.runs import edit_record, failed_checks, make_config

GOLDEN = Path(__file__).parents[1] / "golden" / "runs"


@pytest.mark.thorough
def test_all_slices_of_a_run_that_was_stopped_and_changed_settings(tmp_path, capsys):
    """Its log interval changed within a slice; so did the number of steps per dispatch."""
    config = make_config(keep_checkpoints=1, keep_every=4 * 32.0)
    config.checkpoint_every = 32.0
    config.precise_bn = 2
    resnet_jax.fit(config, tmp_path, stop_at_step=3)
    config.log_every, config.steps_per_dispatch = 5, 2
    resnet_jax.fit(config, tmp_path)
    found = verify_run(tmp_path, slices=None)
    steps = [part.last for part in found.slices]
    assert {4, 8} <= set(steps) <= {4, 7, 8}  # 7 unless 8 was verified before the end
    assert {part.outcome for part in found.slices} == {"equal"}
    assert failed_checks(found) == []
    assert main(["verify", str(tmp_path), "--slices=all"]) == 0
    assert f"is verified: {len(steps)} slices have the same bits." in capsys.readouterr().out


@pytest.mark.thorough
def test_a_run_of_an_older_version_is_verified_as_far_as_it_goes(tmp_path):
    """It has checksums, but no digests of its records, and doesn't say what computed it."""
    with tarfile.open(GOLDEN / "0.1.0.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    found = verify_run(tmp_path / "run", slices=None)
    assert {check.what: check.passed for check in found.checks} == {
        "checkpoints": True,
        "data": True,
        "order of examples": None,
        "metrics.jsonl": None,
        "code and hardware": None,
        "summary.json": None,
    }
    last = found.slices[-1]
    assert last.outcome in ("equal", "other")
    assert last.replayed.other == "the run doesn't record what computed it"
    assert all(one.largest < 1e-2 for one in last.replayed.differences)


@pytest.mark.thorough
def test_a_run_of_several_seeds_with_skipped_steps_is_verified(tmp_path):
    """The lines have lists of values, and the digests are of the batches of both seeds."""
    config = make_config(seeds=(0, 1), batch_size=32)
    config.nonfinite.policy = "skip"
    resnet_jax.fit(config, tmp_path)
    found = verify_run(tmp_path, slices=1)
    assert failed_checks(found) == []
    assert found.slices[-1].outcome == "equal"
    edit_record(tmp_path, 8, seeds={"loss": [1.0, 2.0], "top1": [0.1, 0.2]})
    found = verify_run(tmp_path, slices=1)
    assert failed_checks(found) == ["metrics.jsonl", "summary.json"]
    assert found.slices[-1].replayed.differences[0].what == "train seeds"


@pytest.mark.thorough
def test_a_run_of_four_seeds_on_as_many_devices_is_verified(tmp_path):
    config = make_config(seeds=(0, 1, 2, 3))
    config.mesh.data = 4
    resnet_jax.fit(config, tmp_path)
    found = verify_run(tmp_path, slices=2)
    assert [check.passed for check in found.checks] == [True] * 6
    assert [part.outcome for part in found.slices] == ["", "equal", "", "equal"]
    assert [part.replayed.other for part in found.slices if part.replayed] == ["", ""]


@pytest.mark.thorough
def test_a_run_with_fixed_shards_is_verified_in_a_process_of_its_own(tmp_path):
    """With as many threads as the run: the number is fixed before JAX starts."""
    fields = (
        "--config.model.stage_sizes=(1,)",
        "--config.model.width=16",  # wide enough for sums that are split by threads
        "--config.model.bn_group_size=32",
        "--config.mesh.shards=8",
        "--config.batch_size=256",
        "--config.duration=1024",
        "--config.eval_every=1024",
        "--config.checkpoint_every=256",
        "--config.keep_checkpoints=6",
    )
    assert start(tmp_path / "run", *fields).end().code == 0
    environment = {**os.environ, "XLA_FLAGS": ""}
    environment.pop("PJRT_NPROC", None)
    done = subprocess.run(
        [sys.executable, "-m", "resnet_jax", "verify", str(tmp_path / "run"), "--slices=1"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PJRT_NPROC" not in done.stderr
    assert "is verified" in done.stdout


@pytest.mark.thorough
def test_a_job_of_two_processes_with_split_parameters_is_verified_by_one(tmp_path):
    """The digests are of whole arrays, of which each process has a part."""
    port = portpicker.pick_unused_port()
    workdir = tmp_path / "run"
    arguments = (
        f"--coordinator=127.0.0.1:{port}",
        "--num_processes=2",
        "--coordinator_timeout_s=300",
        "--config.mesh.fsdp=2",
        "--config.keep_checkpoints=6",
    )
    job = [start(workdir, *arguments, f"--process_id={n}", devices=2) for n in range(2)]
    assert [process.end().code for process in job] == [0, 0]
    found = verify_run(workdir, slices=2)
    assert [check.passed for check in found.checks] == [True] * 6
    replayed = [part.replayed for part in found.slices if part.replayed]
    assert len(replayed) == 2
    for one in replayed:
        assert "processes 2, here 1" in one.other
        assert "devices" not in one.other
        assert all(difference.largest < 1e-2 for difference in one.differences)
    assert found.verdict in ("verified", "undecided")
