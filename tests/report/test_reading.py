"""What of damaged runs can be read, and what is said of the rest."""

import json

import pytest

from resnet_jax.errors import ConfigError
from resnet_jax.report.reading import read_runs, without_folders
from resnet_jax.research.compare import find_runs
from tests.research.fake_run import write_run


def _read(folder):
    return read_runs(find_runs([folder]))


def test_a_sound_run_has_no_notes(tmp_path):
    write_run(tmp_path / "a")
    (run,), notes = _read(tmp_path)
    assert (run.name, len(run.record.records), notes) == ("a", 6, [])


def test_damaged_lines_are_left_out_and_named(tmp_path):
    metrics = write_run(tmp_path / "a") / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    lines[1] = "no JSON\n"
    lines[2] = lines[2].replace('"loss": 1.5', '"loss": NaN')
    lines[4] = "[]\n"
    metrics.write_text("".join(lines) + '{"step": 16, "ep')  # and a crash while it was written
    (run,), (note,) = _read(tmp_path)
    assert [r["step"] for r in run.record.records] == [4, 8, 12]
    assert note == (
        "a: damaged lines of metrics.jsonl are left out (line 2: not JSON; line 3: NaN is no finite"
        " number; line 5: no JSON object)"
    )


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\n" * 5])
def test_a_run_without_records_has_scores_all_the_same(content, tmp_path):
    metrics = write_run(tmp_path / "a") / "metrics.jsonl"
    metrics.unlink()
    if content is not None:
        metrics.write_bytes(content)
    (run,), notes = _read(tmp_path)
    assert run.record.records == []
    assert run.record.summary
    assert notes[-1] == "a: no curves, because metrics.jsonl has no records"
    assert ("2 more" in notes[0]) == (content not in (None, b""))


@pytest.mark.parametrize(
    "scores",
    [
        {"top1": float("nan")},
        {"top1": 1.5},
        {"examples": 0},
        {"examples": "many"},
        {"loss": float("inf")},
        {"loss": 1e308},
        {"examples": 10**400},
    ],
)
def test_impossible_scores_are_damage(scores, tmp_path):
    path = write_run(tmp_path / "a") / "summary.json"
    summary = json.loads(path.read_text())
    summary["final"]["test"] |= scores
    path.write_text(json.dumps(summary))
    (run,), notes = _read(tmp_path)
    assert run.record.summary is None
    assert notes[0] == "a: summary.json is damaged, so that the run has no final scores here"


@pytest.mark.parametrize("text", ["[]", "{}", '{"final": 3}', "null", "no JSON", '{"seed": []}'])
def test_a_damaged_summary_is_a_note(text, tmp_path):
    (write_run(tmp_path / "a") / "summary.json").write_text(text)
    (run,), notes = _read(tmp_path)
    assert run.record.summary is None
    assert notes[0].startswith("a: summary.json is damaged")


@pytest.mark.parametrize(
    "text",
    [
        '{"seeds": [[1]]}',
        '{"seeds": [0], "vary": [["schedule.base_lr", [0.1, 0.2]]]}',
        '{"seeds": [0], "vary": [["schedule.base_lr", [[0.1]]]]}',
    ],
)
def test_a_run_whose_config_cannot_be_used_is_left_out(text, tmp_path):
    write_run(tmp_path / "sound")
    config = write_run(tmp_path / "worse") / "config.json"
    config.write_text(text)
    (run,), (note,) = _read(tmp_path)
    assert run.name == "sound"
    assert note.startswith("worse: left out, because its config can't be used (")
    assert str(tmp_path) not in note
    (tmp_path / "sound" / "config.json").write_text("[1]")
    with pytest.raises(ConfigError, match="sound/config.json can't be used"):
        _read(tmp_path)


def test_a_run_that_is_not_finished_is_said_to_be(tmp_path):
    folder = write_run(tmp_path / "a", finished=False)
    assert _read(tmp_path)[1] == ["a: not finished (unknown), at step 12"]
    process = {"started": 1.0, "ended": 2.0, "start_step": 0, "error": "/home/me/x is damaged"}
    (folder / "process.json").write_text(json.dumps(process))
    assert _read(tmp_path)[1] == ["a: failed: …/x is damaged"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/someone/data/flowers", "…/flowers"),
        ("/home/my photos/of flowers", "…/of flowers"),
        ("~/data/flowers/", "…/flowers"),
        ("gs://bucket/runs/a", "…/a"),
        ("there is no /home/someone/data, see b", "there is no …/data, see b"),
        ("('/home/a/b', 'c')", "('…/b', 'c')"),
        ("--data_dir=/home/a/b", "--data_dir=…/b"),
        ("train[:90%]+test", "train[:90%]+test"),
        ("12 img/s and 1/2", "12 img/s and 1/2"),
        ("python code/train.py", "python code/train.py"),
    ],
)
def test_folders_are_private(text, shown):
    assert without_folders(text) == shown


def test_known_folders_may_have_spaces():
    text = without_folders("in /my runs/of may/a: no file", "/my runs/of may/a", "")
    assert text == "in …/a: no file"


def test_records_of_impossible_size_are_left_out(tmp_path):
    metrics = write_run(tmp_path / "a", seeds=(0, 1, 2)) / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    lines[0] = lines[0].replace("[2.99, 3.0, 3.01]", "[1.7e308, 1.7e308, 3]")
    metrics.write_text("".join(lines))
    (run,), notes = _read(tmp_path)
    assert len(run.record.records) == 5
    assert notes == ["a: records of metrics.jsonl with numbers above 1e+100 are left out (1)"]
