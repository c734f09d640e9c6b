"""`resnet-jax verify` accepts an intact run and names what was changed in any other."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

import resnet_jax
from resnet_jax.checkpoint.lock import locked
from resnet_jax.checkpoint.reader import CheckpointReader
from resnet_jax.cli.main import main
from resnet_jax.data import datasets
from resnet_jax.data.loaders import sampler
from resnet_jax.errors import DataError, WriteError
from resnet_jax.logging import provenance
from resnet_jax.verification import verify
from resnet_jax.verification.replay import replay, unreplayable
from resnet_jax.verification.run_record import read_run
from resnet_jax.verification.verify import Verification, verify_run
from tests.verification.runs import edit_record, failed_checks, forge_bit, make_config


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Eight steps with checkpoints of steps 2, 4, 6 and 8; not to be changed."""
    workdir = tmp_path_factory.mktemp("original") / "run"
    resnet_jax.fit(make_config(), workdir)
    return workdir


@pytest.fixture
def run(original, tmp_path):
    """A copy to tamper with."""
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


def _check(found: Verification, what: str):
    return next(check for check in found.checks if check.what == what)


def _files(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_last_slice_of_an_intact_run_has_the_same_bits_and_nothing_is_changed(original):
    before = _files(original)
    found = verify_run(original, slices=1)
    assert _files(original) == before
    assert [check.passed for check in found.checks] == [True] * 6
    assert [(part.first, part.last, part.outcome) for part in found.slices] == [
        (0, 2, ""),
        (2, 4, ""),
        (4, 6, ""),
        (6, 8, "equal"),
    ]
    assert found.verdict == "verified"


def test_an_edited_line_is_found(run, capsys):
    edit_record(run, 8, loss=0.5)
    found = verify_run(run, slices=0)
    assert failed_checks(found) == ["metrics.jsonl", "summary.json"]
    assert "before checkpoint 8" in _check(found, "metrics.jsonl").detail

    assert main(["verify", str(run), "--slices=1", "--json"]) == 65
    document = json.loads(capsys.readouterr().out)
    (difference,) = document["slices"][-1]["differences"]
    assert difference["what"] == "train loss"
    assert difference["detail"].startswith("0.5 on record, ")
    assert difference["step"] == 8


def test_a_line_of_another_batch_order_is_found(run):
    edit_record(run, 2, batches="0123456789abcdef")
    found = verify_run(run, slices=0)
    assert _check(found, "order of examples").detail == (
        "the batches of steps 1 to 2 aren't those of the config"
    )


def test_a_copy_of_another_checkpoint_is_found(run):
    shutil.rmtree(run / "checkpoints" / "6")
    shutil.copytree(run / "checkpoints" / "4", run / "checkpoints" / "6")
    found = verify_run(run, slices=0)
    assert _check(found, "checkpoints").detail == (
        "step 6: it is a copy of the checkpoint of step 4"
    )
    assert [part.reason for part in found.slices][2:] == ["checkpoint 6 is damaged"] * 2
    assert found.verdict == "differs"


def test_other_data_are_named_and_nothing_is_trained(original, monkeypatch, capsys):
    monkeypatch.setattr(datasets, "_fingerprint", lambda *_: "0123456789abcdef")
    assert main(["verify", str(original), "--json"]) == 65
    document = json.loads(capsys.readouterr().out)
    checks = {check["what"]: check for check in document["checks"]}
    assert [what for what, check in checks.items() if check["passed"] is False] == [
        "data",
        "summary.json",
    ]
    assert "the data have the fingerprint 0123456789abcdef" in checks["data"]["detail"]
    assert [row["reason"] for row in document["slices"]] == ["the data are others"] * 4
    assert document["verdict"] == "differs"


@pytest.mark.thorough
def test_another_order_of_examples_and_its_checkpoint_in_this_run_are_found(
    run, tmp_path, monkeypatch
):
    def other(seed, epoch, num_examples):
        return np.roll(permutation(seed, epoch, num_examples), 1)

    permutation = sampler.epoch_permutation
    with monkeypatch.context() as patch:
        patch.setattr(sampler, "epoch_permutation", other)
        resnet_jax.fit(make_config(), tmp_path / "other")
    found = verify_run(tmp_path / "other", slices=1)
    assert failed_checks(found) == ["order of examples"]
    assert [part.outcome for part in found.slices][-1] == "differs"
    assert found.slices[-1].replayed.differences[0].what == "train loss"

    shutil.rmtree(run / "checkpoints" / "8")
    shutil.copytree(tmp_path / "other" / "checkpoints" / "8", run / "checkpoints" / "8")
    found = verify_run(run, slices=1)
    assert "metrics.jsonl" in failed_checks(found)
    assert found.slices[-1].outcome == "differs"


def test_one_flipped_bit_is_found_by_the_checksum(run, tmp_path):
    """In an array whose file is sound, so that nothing but the checksum can tell."""
    shutil.copytree(run, tmp_path / "other")
    forge_bit(tmp_path / "other", 8)
    state = run / "checkpoints" / "8" / "state"
    shutil.rmtree(state)
    shutil.copytree(tmp_path / "other" / "checkpoints" / "8" / "state", state)
    found = verify_run(run, slices=0)
    assert failed_checks(found) == ["checkpoints"]
    detail = _check(found, "checkpoints").detail
    assert detail.startswith("step 8: ")
    assert "params.fc.kernel" in detail


def test_one_flipped_bit_under_forged_checksums_is_found_by_training_again(run, capsys):
    forge_bit(run, 8)
    assert main(["verify", str(run), "--slices=1"]) == 65
    said = capsys.readouterr().out
    assert "step 8: params.fc.kernel differs" in said
    assert "1 of 1 slices differ" in said


@pytest.mark.thorough
def test_a_difference_on_another_machine_is_reported_and_no_fault(run, monkeypatch, capsys):
    forge_bit(run, 8)
    here = provenance.hardware() | {"cpu": "another processor"}
    monkeypatch.setattr(provenance, "hardware", lambda: here)
    found = verify_run(run, slices=1)
    replayed = found.slices[-1].replayed
    assert found.verdict == "undecided"
    assert found.slices[-1].outcome == "other"
    assert "here another processor" in replayed.other
    assert 0 < replayed.differences[-1].largest < 1e-6
    assert main(["verify", str(run), "--slices=1"]) == 0
    assert "bits can't be compared" in capsys.readouterr().out


def test_what_xla_computes_with_is_on_record(original, monkeypatch):
    """On fewer cores or by other flags the bits differ, which is no fault of the run."""
    recorded = read_run(epath.Path(original)).environments[-1]
    assert recorded["xla_flags"] == provenance.environment(1, "")["xla_flags"]
    assert recorded["xla_threads"] >= 8  # devices of this process
    monkeypatch.setenv("XLA_FLAGS", "--xla_b=/home/me/b --xla_dump_to=/x --xla_a=1")
    monkeypatch.setenv("PJRT_NPROC", "64")
    here = provenance.environment(1, "")
    assert (here["xla_flags"], here["xla_threads"]) == ("--xla_a=1 --xla_b=b", 64)
    assert recorded["options"] == here["options"]
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        options = provenance.environment(1, "")["options"]
    changed = {name for name, value in options.items() if here["options"][name] != value}
    assert changed == {"jax_enable_x64", "jax_default_matmul_precision"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"config": {"seed": 3}}, "seed is 3 there, 0 in config.json"),
        ({"data": {"fingerprint": "x"}}, "the fingerprint of the data isn't this run's"),
        ({"steps": 9}, "the number of steps isn't this run's"),
        ({"records": {"sha256": "x"}}, "metrics.jsonl isn't the one that it was made from"),
        ({"environments": []}, "the code or hardware isn't this run's"),
        ({"final": {"test": {"top1": 1.0}}}, "test top1 is 1.0 there, "),
        ({"best": {"top1": 1.0}}, "validation top1 is 1.0 there, "),
        ({"final": None}, "it is damaged"),
    ],
)
def test_a_summary_of_another_run_is_found(change, expected, run):
    path = run / "summary.json"
    summary = json.loads(path.read_text())
    for name, value in change.items():
        if isinstance(value, dict) and name == "final":
            summary["final"]["test"] |= value["test"]
        else:
            summary[name] = summary[name] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(summary))
    found = verify_run(run, slices=0)
    assert failed_checks(found) == ["summary.json"]
    assert expected in _check(found, "summary.json").detail


def test_a_slice_in_which_the_run_went_back_cannot_be_trained_again(run):
    record = read_run(epath.Path(run))
    progress = record.progress(8)
    assert unreplayable(record, 6, 8) == ""
    progress["nonfinite"] = 1
    assert unreplayable(record, 6, 8) == ""  # by default the run would have ended
    progress["environments"][-1]["settings"]["nonfinite.policy"] = "rollback"
    assert "went back" in unreplayable(record, 6, 8)


def test_a_run_that_is_training_is_refused(run, capsys):
    with locked(epath.Path(run)):
        assert main(["verify", str(run), "--slices=0"]) == 73
    said = capsys.readouterr()
    assert f"{run} is in use by process {os.getpid()} on " in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_a_checkpoint_that_is_deleted_meanwhile_is_not_damaged(run, monkeypatch):
    listed = CheckpointReader.steps

    def steps(reader):
        found = listed(reader)
        shutil.rmtree(run / "checkpoints" / "4", ignore_errors=True)
        return found

    monkeypatch.setattr(CheckpointReader, "steps", steps)
    found = verify_run(run, slices=0)
    assert failed_checks(found) == []
    assert [(part.first, part.last) for part in found.slices] == [(0, 2), (2, 6), (6, 8)]


def test_a_checkpoint_that_is_half_deleted_by_a_run_that_began_is_not_damaged(run, monkeypatch):
    listed = CheckpointReader.steps
    with contextlib.ExitStack() as training:

        def steps(reader):
            training.enter_context(locked(epath.Path(run)))
            shutil.rmtree(run / "checkpoints" / "4" / "state", ignore_errors=True)
            return listed(reader)

        monkeypatch.setattr(CheckpointReader, "steps", steps)
        with pytest.raises(WriteError, match="is in use by"):
            verify_run(run, slices=0)


@pytest.mark.parametrize("when", ["before", "within"])
def test_a_run_that_begins_after_the_documents_were_read_is_named(run, when, monkeypatch):
    """Not its checkpoints, which it deletes."""
    with contextlib.ExitStack() as training:

        def go_on(*_, **__):
            training.enter_context(locked(epath.Path(run)))
            shutil.rmtree(run / "checkpoints" / "6")

        def replay_meanwhile(record, first, last, *, data_dir):
            assert when == "within"
            go_on()
            return replay(record, first, last, data_dir=data_dir)

        monkeypatch.setattr(verify, "replay", replay_meanwhile)
        if when == "before":
            checks = verify.check_documents

            def check_documents(*arguments):
                go_on()
                return checks(*arguments)

            monkeypatch.setattr(verify, "check_documents", check_documents)
        with pytest.raises(WriteError, match="is in use by"):
            verify_run(run, slices=1)


def test_a_temporary_folder_that_cannot_be_written_is_named(
    original, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    written = type(epath.Path(folder)).open

    def full(path, mode="r", *args, **kwargs):
        if mode == "wb":
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(path, mode, *args, **kwargs)

    def refused():
        assert main(["verify", str(original), "--slices=1"]) == 73
        said = capsys.readouterr().err.splitlines()[-1]
        assert f"The temporary folder {folder} can't be written (" in said
        assert "TMPDIR" in said
        return said

    with monkeypatch.context() as patch:
        patch.setattr(type(epath.Path(folder)), "open", full)
        assert "No space left on device" in refused()
    assert list(folder.iterdir()) == []
    folder.rmdir()
    assert "No such file or directory" in refused()


def test_a_checkpoint_that_cannot_be_read_is_named(run, tmp_path):
    record = read_run(epath.Path(run))
    shutil.rmtree(run / "checkpoints" / "6")
    with pytest.raises(DataError, match=r"checkpoints/6 can't be read \(No such file") as found:
        replay(record, 6, 8, data_dir=None)
    assert "\n" not in str(found.value)


def test_a_run_without_checkpoints_is_refused_in_one_line(run, capsys):
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(DataError, match="has no finished checkpoint"):
        verify_run(run)
    (run / "checkpoints").mkdir()
    assert main(["verify", str(run)]) == 65
    assert "has no finished checkpoint" in capsys.readouterr().err


def test_a_folder_that_is_no_run_and_a_bad_count_are_refused(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 78
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(tmp_path), "--slices=-1"])
    assert ended.value.code == 64
    assert "isn't a number of slices, or all" in capsys.readouterr().err
