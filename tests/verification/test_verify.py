"""`resnet-jax verify` accepts an intact run and names what was changed in any other."""

import hashlib
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import portpicker
import pytest
from etils import epath

import resnet_jax
from resnet_jax.checkpoint.checkpointer import Checkpointer
from resnet_jax.checkpoint.reader import CheckpointReader
from resnet_jax.cli.main import main
from resnet_jax.config.io import bound_fields
from resnet_jax.data.loaders import sampler
from resnet_jax.errors import DataError
from resnet_jax.logging import provenance
from resnet_jax.verification.replay import unreplayable
from resnet_jax.verification.run_record import read_run
from resnet_jax.verification.verify import Verification, verify_run
from tests.runs import start

GOLDEN = Path(__file__).parents[1] / "golden" / "runs"


def _config(**fields):
    from tests.conftest import make_tiny_config

    config = make_tiny_config()
    config.model.stage_sizes = (1,)
    config.duration = 8 * 32.0
    config.checkpoint_every = 2 * 32.0
    config.log_every = 2
    config.keep_checkpoints = 4
    for name, value in fields.items():
        config[name] = value
    return config


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Eight steps with checkpoints of steps 2, 4, 6 and 8; not to be changed."""
    workdir = tmp_path_factory.mktemp("original") / "run"
    resnet_jax.fit(_config(), workdir)
    return workdir


@pytest.fixture
def run(original, tmp_path):
    """A copy to tamper with."""
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


def _check(found: Verification, what: str):
    return next(check for check in found.checks if check.what == what)


def _failed(found: Verification) -> list[str]:
    return [check.what for check in found.checks if check.passed is False]


def _files(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in folder.rglob("*")
        if path.is_file()
    }


def _edit_line(run: Path, step: int, **fields) -> None:
    """Change fields of the training record of a step."""
    path = run / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        if (record["step"], record["split"]) == (step, "train"):
            record.update(fields)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def _forge(run: Path, step: int, change) -> None:
    """Save a checkpoint again with other arrays, whose checksums and seal are right."""
    config = _config()
    directory, bound = run / "checkpoints", bound_fields(config)
    reader = CheckpointReader(directory, run=bound)
    state, progress = reader.restore_on_one_device(step)
    scores = reader.manager.metrics(step)
    reader.close()
    shutil.rmtree(directory / str(step))
    checkpoints = Checkpointer(directory, keep=9, run=bound)
    checkpoints.save(step, change(state), progress=progress, metrics=scores)
    checkpoints.close()


def _flip_bit(state):
    kernel = np.array(state["params"]["fc"]["kernel"])
    kernel.view(np.uint32)[0, 0] ^= 1
    state["params"]["fc"]["kernel"] = kernel
    return state


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


@pytest.mark.thorough
def test_all_slices_of_a_run_that_was_stopped_and_changed_settings(tmp_path, capsys):
    """Its log interval changed within a slice; so did the number of steps per dispatch."""
    config = _config(keep_checkpoints=1, keep_every=4 * 32.0)
    config.checkpoint_every = 32.0
    config.precise_bn = 2
    resnet_jax.fit(config, tmp_path, stop_at_step=3)
    config.log_every, config.steps_per_dispatch = 5, 2
    resnet_jax.fit(config, tmp_path)
    found = verify_run(tmp_path, slices=None)
    steps = [part.last for part in found.slices]
    assert {4, 8} <= set(steps) <= {4, 7, 8}  # 7 unless 8 was verified before the end
    assert {part.outcome for part in found.slices} == {"equal"}
    assert _failed(found) == []
    assert main(["verify", str(tmp_path), "--slices=all"]) == 0
    assert f"is verified: {len(steps)} slices have the same bits." in capsys.readouterr().out


def test_an_edited_line_is_found(run, capsys):
    _edit_line(run, 8, loss=0.5)
    found = verify_run(run, slices=0)
    assert _failed(found) == ["metrics.jsonl", "summary.json"]
    assert "before checkpoint 8" in _check(found, "metrics.jsonl").detail

    assert main(["verify", str(run), "--slices=1", "--json"]) == 65
    document = json.loads(capsys.readouterr().out)
    (difference,) = document["slices"][-1]["differences"]
    assert difference["what"] == "train loss"
    assert difference["detail"].startswith("0.5 on record, ")
    assert difference["step"] == 8


def test_a_line_of_another_batch_order_is_found(run):
    _edit_line(run, 2, batches="0123456789abcdef")
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


@pytest.mark.thorough
def test_another_order_of_examples_and_its_checkpoint_in_this_run_are_found(
    run, tmp_path, monkeypatch
):
    def other(seed, epoch, num_examples):
        return np.roll(permutation(seed, epoch, num_examples), 1)

    permutation = sampler.epoch_permutation
    with monkeypatch.context() as patch:
        patch.setattr(sampler, "epoch_permutation", other)
        resnet_jax.fit(_config(), tmp_path / "other")
    found = verify_run(tmp_path / "other", slices=1)
    assert _failed(found) == ["order of examples"]
    assert [part.outcome for part in found.slices][-1] == "differs"
    assert found.slices[-1].replayed.differences[0].what == "train batches" or (
        found.slices[-1].replayed.differences[0].step == 8
    )

    shutil.rmtree(run / "checkpoints" / "8")
    shutil.copytree(tmp_path / "other" / "checkpoints" / "8", run / "checkpoints" / "8")
    found = verify_run(run, slices=1)
    assert "metrics.jsonl" in _failed(found)
    assert found.slices[-1].outcome == "differs"


def test_one_flipped_bit_is_found_by_the_checksum(run):
    arrays = (run / "checkpoints" / "6" / "state").rglob("d/*")
    file = max(arrays, key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    found = verify_run(run, slices=0)
    assert _failed(found) == ["checkpoints"]
    assert _check(found, "checkpoints").detail.startswith("step 6: ")


def test_one_flipped_bit_under_forged_checksums_is_found_by_training_again(run, capsys):
    _forge(run, 8, _flip_bit)
    assert main(["verify", str(run), "--slices=1"]) == 65
    said = capsys.readouterr().out
    assert "step 8: params.fc.kernel differs" in said
    assert "1 of 1 slices differ" in said


@pytest.mark.thorough
def test_a_difference_on_another_machine_is_reported_and_no_fault(run, monkeypatch, capsys):
    _forge(run, 8, _flip_bit)
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
    assert _failed(found) == ["summary.json"]
    assert expected in _check(found, "summary.json").detail


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
    config = _config(seeds=(0, 1), batch_size=32)
    config.nonfinite.policy = "skip"
    resnet_jax.fit(config, tmp_path)
    found = verify_run(tmp_path, slices=1)
    assert _failed(found) == []
    assert found.slices[-1].outcome == "equal"
    _edit_line(tmp_path, 8, seeds={"loss": [1.0, 2.0], "top1": [0.1, 0.2]})
    found = verify_run(tmp_path, slices=1)
    assert _failed(found) == ["metrics.jsonl", "summary.json"]
    assert found.slices[-1].replayed.differences[0].what == "train seeds"


@pytest.mark.thorough
def test_a_job_of_two_processes_with_split_parameters_is_verified_by_one(tmp_path):
    """The digests are of whole arrays, of which each process has a part."""
    port = portpicker.pick_unused_port()
    workdir = tmp_path / "run"
    arguments = (
        f"--coordinator=127.0.0.1:{port}",
        "--num_processes=2",
        "--coordinator_timeout_s=60",
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


def test_a_slice_in_which_the_run_went_back_cannot_be_trained_again(run):
    record = read_run(epath.Path(run))
    progress = record.progress(8)
    assert unreplayable(record, 6, 8) == ""
    progress["nonfinite"] = 1
    assert unreplayable(record, 6, 8) == ""  # by default the run would have ended
    progress["environments"][-1]["settings"]["nonfinite.policy"] = "rollback"
    assert "went back" in unreplayable(record, 6, 8)


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
