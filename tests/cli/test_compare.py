"""resnet-jax compare, on directories as runs leave them."""

import errno
import itertools
import json
import os

import numpy as np
import pytest
import scipy.stats
from etils import epath
from PIL import Image

from resnet_jax.cli.main import main
from resnet_jax.research.compare import (
    describe,
    differing_fields,
    find_runs,
    gather_lines,
    read_run,
)
from tests.cli.mistakes import assert_one_line
from tests.research.fake_run import write_run


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    for seed, top1 in ((0, 0.89), (1, 0.91)):
        write_run(folder / f"deep/seed{seed}", top1=top1, seed=seed, model__name="resnet56")
    write_run(folder / "shallow", top1=0.8, log_every=7)
    write_run(folder / "short", steps=(4,), finished=False, batch_size=64)
    return folder


_OTHER = {"a": {}, "b": {"batch_size": 64}}


def _compare(capsys, *arguments):
    assert main(["compare", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_seeds_are_one_line_and_only_what_differs_is_said(runs, tmp_path, capsys):
    out = tmp_path / "all.png"
    deep, shallow, short = _compare(capsys, runs, f"--out={out}")["lines"]
    assert (deep["label"], deep["seeds"], deep["model"]) == ("deep", [0, 1], "resnet56")
    assert deep["scores"]["test"]["top1"] == pytest.approx({"mean": 0.9, "std": 0.02 / 2**0.5})
    assert deep["differs"] == {"model.name": "resnet56", "batch_size": 128}  # no log_every
    assert shallow["scores"]["test"]["top1"] == {"mean": 0.8, "std": None}
    assert (short["finished"], short["steps"], short["scores"]) == (False, 4, {})
    assert short["train_loss"] == {"mean": 3.0, "std": None}
    picture = np.asarray(Image.open(out).convert("RGB"))
    assert picture.shape[1] == pytest.approx(7.2 * 300, abs=2)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100


def test_the_table_for_people(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    picture = tmp_path / "a.pdf"
    assert main(["compare", str(runs), f"--out={picture}", "--labels=A,B,C", "--metric=loss"]) == 0
    out = capsys.readouterr().out
    assert "10.00 ± 1.41" in out
    assert "4 so far" in out
    assert "  A: batch_size=128, model.name=resnet56\n" in out
    assert picture.read_bytes().startswith(b"%PDF")


def test_settings_that_vary_with_the_seeds_are_lines_of_their_own(tmp_path, capsys):
    rates = ("schedule.base_lr", (0.1, 0.1, 0.05))
    document = write_run(tmp_path / "runs/a", seeds=(0, 1, 0), vary=(rates,)) / "summary.json"
    summary = json.loads(document.read_text())
    top1 = [0.90, 0.92, 0.85]
    of_seeds = {"loss": [0.3, 0.3, 0.4], "top1": top1, "top5": [1.0, 1.0, 1.0]}
    summary["final"]["test"] |= {"seeds": of_seeds, "std": {}}
    document.write_text(json.dumps(summary | {"seeds": [0, 1, 0]}))
    first, second = _compare(capsys, tmp_path / "runs", f"--out={tmp_path / 'a.png'}")["lines"]
    assert first["label"] == "a,schedule.base_lr=0.1"
    assert second["label"] == "a,schedule.base_lr=0.05"
    assert [line["seeds"] for line in (first, second)] == [[0, 1], [0]]
    assert [line["differs"] for line in (first, second)] == [
        {"schedule.base_lr": 0.1},
        {"schedule.base_lr": 0.05},
    ]
    assert first["scores"]["test"]["n"] == 2
    assert first["scores"]["test"]["top1"]["mean"] == pytest.approx(0.91)
    assert second["scores"]["test"]["top1"] == {"mean": 0.85, "std": None}
    assert second["versus"]["effect"] == pytest.approx(0.85 - 0.91)
    _, losses = gather_lines([read_run(tmp_path / "runs/a")])[1].curve("train", "loss")
    np.testing.assert_allclose(losses, [[3.01, 1.51, 1.01]])  # of the third of its networks


def test_curves_of_seeds_reach_as_far_as_all_of_them(tmp_path):
    write_run(tmp_path / "a" / "seed0", top1=0.6, seed=0)
    write_run(tmp_path / "a" / "seed1", top1=0.9, steps=(4, 8), finished=False, seed=1)
    (line,) = gather_lines([read_run(folder) for folder in find_runs([tmp_path])])
    epochs, values = line.curve("validation", "top1")
    assert epochs == [1, 2]
    np.testing.assert_allclose(values, [[0.2, 0.4], [0.3, 0.6]])


def test_a_run_of_several_seeds_has_a_curve_of_each(tmp_path):
    write_run(tmp_path / "a", top1=0.9, seeds=(0, 1, 2), finished=False)
    (line,) = gather_lines([read_run(tmp_path / "a")])
    _, values = line.curve("validation", "top1")
    np.testing.assert_allclose(values[:, -1], [0.89, 0.9, 0.91])


def test_a_repeated_run_is_no_second_seed(tmp_path):
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    lines = gather_lines([read_run(first), read_run(second)])
    assert [line.label for line in lines] == ["a", "b"]


def test_runs_may_have_fields_that_others_lack(tmp_path):
    lines = gather_lines(
        [read_run(write_run(tmp_path / n, seed=0, **f)) for n, f in _OTHER.items()]
    )
    lines[1].runs[0].config["model.own"] = 3  # of a branch that its extensions register
    for order in (lines, lines[::-1]):
        differing = differing_fields(order)
        assert differing == ("batch_size", "model.own")
        assert describe(lines[0], differing, first=lines[0])["differs"]["model.own"] is None


def test_results_that_are_kept_without_their_config_can_be_compared(tmp_path, capsys):
    folder = write_run(tmp_path / "a")
    (folder / "config.json").unlink()
    (line,) = _compare(capsys, folder, f"--out={tmp_path / 'a.png'}")["lines"]
    assert (line["label"], line["differs"]) == ("a", {})


def _with_seeds(folder, tops, first_seed=0, **fields):
    for seed, top1 in enumerate(tops, first_seed):
        write_run(folder / f"seed{seed}", top1=top1, seed=seed, **fields)


def test_a_real_difference_is_told_from_chance(tmp_path, capsys, monkeypatch):
    runs, out = tmp_path / "runs", f"--out={tmp_path / 'a.png'}"
    _with_seeds(runs / "a", (0.88, 0.90, 0.92))
    _with_seeds(runs / "b", (0.91, 0.93, 0.951), model__name="resnet56")
    _with_seeds(runs / "c", (0.90, 0.93, 0.88), first_seed=3, batch_size=64)
    first, paired, welch = _compare(capsys, runs, out)["lines"]
    assert first["versus"] is None
    assert first["scores"]["test"]["sampling_error"] == pytest.approx(0.03)  # of 100 images
    expected = scipy.stats.ttest_rel((0.91, 0.93, 0.951), (0.88, 0.90, 0.92))
    versus = paired["versus"]
    assert (versus["split"], versus["test"], versus["is_real"]) == ("test", "paired t", True)
    assert versus["effect"] == pytest.approx(0.091 / 3)
    assert versus["p"] == pytest.approx(expected.pvalue)
    assert [versus["low"], versus["high"]] == pytest.approx(list(expected.confidence_interval()))
    versus = welch["versus"]
    assert (versus["test"], versus["is_real"]) == ("Welch's t", False)
    assert versus["low"] < 0 < versus["high"]
    assert versus["more_seeds"] > 100

    monkeypatch.setenv("COLUMNS", "200")
    assert main(["compare", str(runs), out]) == 0
    shown = capsys.readouterr().out
    assert "difference of the error from a, in points" in shown
    row = next(line for line in shown.splitlines() if "paired t" in line)
    for cell in ("-3.03", "-3.18 … -2.89", "no more", "better"):
        assert cell in row
    row = next(line for line in shown.splitlines() if "Welch" in line)
    assert f"{versus['more_seeds']:,} more" in row
    assert "undecided" in row


@pytest.mark.parametrize(
    ("tops", "fields", "note"),
    [
        ((0.9,), {"model__name": "resnet56"}, "a single seed has no variance"),
        ((0.8, 0.9), {"model__name": "resnet56"}, "the scores are equal"),
        ((0.8, 0.95), {"data__test": "test[:50%]"}, "other images: data.test is 'test' and 'test["),
        ((0.8, 0.95), {"data__name": "cifar10"}, "other images: data.name is 'digits' and 'cifar"),
    ],
)
def test_what_cannot_be_compared_is_said(tops, fields, note, tmp_path, capsys, monkeypatch):
    _with_seeds(tmp_path / "a", (0.8, 0.9))
    _with_seeds(tmp_path / "b", tops, **fields)
    out = f"--out={tmp_path / 'a.png'}"
    _, second = _compare(capsys, tmp_path, out)["lines"]
    assert note in second["versus"]["note"]
    assert second["versus"]["is_real"] is None
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["compare", str(tmp_path), out]) == 0
    assert note in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{none}"], 78, "none isn't the directory of a run, and has none below it"),
        (["{runs}", "--out=a.gif"], 64, "--out is a.gif"),
        (["{runs}", "--out={none}/a.png"], 73, "--out: there is no folder"),
        (["{runs}", "--labels=x,y"], 64, "--labels names 2, but there are 3 lines"),
        (["{runs}", "--metric=top5"], 64, "invalid choice: 'top5'"),
    ],
)
def test_mistakes_are_one_line(arguments, code, message, runs, tmp_path, capsys):
    filled = [one.format(runs=runs, none=tmp_path / "none") for one in arguments]
    assert_one_line(["compare", *filled], code, message, capsys)


@pytest.mark.parametrize(
    ("file", "content", "code"),
    [
        ("config.json", "{", 78),
        ("config.json", '{"depth": 3}', 78),
        ("metrics.jsonl", '{"step": 4}\n', 65),
        ("metrics.jsonl", '{"step": 4, "split": "train", "epoch": 1, "loss": "low"}\n', 65),
        ("summary.json", '{"final": {}}', 65),
        ("summary.json", "", 65),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(file, content, code, runs, capsys):
    (runs / "shallow" / file).write_text(content)
    assert_one_line(["compare", str(runs)], code, f"shallow/{file}", capsys)


def test_any_name_of_a_folder_has_a_place_in_the_order(tmp_path):
    """A superscript two is a digit to Python, but no number."""
    for name in ("x1²", "x10", "x9"):
        write_run(tmp_path / name)
    assert [run.name for run in find_runs([tmp_path])][:2] == ["x1²", "x9"]


def test_a_folder_that_cannot_be_reached_is_one_line(runs, capsys, monkeypatch):
    """As where the client of a bucket fails after the first look."""
    looks = itertools.count()
    exists = type(epath.Path("/")).exists

    def fail(path):
        if path.name == "summary.json" and next(looks):
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        return exists(path)

    monkeypatch.setattr(type(epath.Path("/")), "exists", fail)
    arguments = ["compare", str(runs / "shallow"), str(runs / "deep")]
    assert_one_line(arguments, 78, "summary.json can't be read (Connection timed out)", capsys)
