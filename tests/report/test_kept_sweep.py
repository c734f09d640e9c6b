"""The page of a sweep's tables says what they say, and refuses damage."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from etils import epath

from resnet_jax.cli.main import main
from resnet_jax.report.kept_sweep import is_kept_sweep, sweep_document
from resnet_jax.report.page import render_page
from tests.cli.mistakes import assert_one_line
from tests.report.pages import Page
from tests.research.fake_run import write_run
from tests.runs import ROOT

_COMMITTED = ROOT / "benchmarks/results/digits_sweep"


@pytest.fixture
def folder(tmp_path) -> Path:
    return shutil.copytree(_COMMITTED, tmp_path / "sweep")


def test_the_scores_are_those_of_the_tables():
    document = Page(render_page(sweep_document(epath.Path(_COMMITTED)))).data
    kept = json.loads((_COMMITTED / "sweep.json").read_text())
    with (_COMMITTED / "sweep.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [line["label"] for line in document["lines"]] == kept["runs"]
    for line, group in zip(document["lines"], kept["groups"], strict=True):
        score = line["scores"]["test"]
        assert score["top1"] == pytest.approx(group["scores"]["test"]["top1"])
        own = [
            float(row["top1"])
            for row in rows
            if (row["run"], row["split"], row["weights"]) == (line["label"], "test", "raw")
        ]
        assert list(score["values"].values()) == own
        low, high = score["interval"]
        assert low <= score["top1"]["mean"] <= high
    sizes = next(of for of in document["grid"] if of["name"] == "model.stage_sizes")
    assert sizes["values"] == ["(1, 1, 1)", "(2, 2, 2)", "(3, 3, 3)"] * 3
    assert document["made_by"][0]["commit"]
    assert document["lines"][1]["versus"]["split"] == "test"


def test_only_tables_without_runs_are_such_a_sweep(folder):
    assert is_kept_sweep(epath.Path(folder))
    write_run(folder / "a")
    assert not is_kept_sweep(epath.Path(folder))
    assert not is_kept_sweep(epath.Path(folder / "a"))
    assert not is_kept_sweep(epath.Path(folder / "nowhere"))


def _without(name, text):
    return lambda path: (path / name).write_text(text)


def _replaced(before, after):
    """Changes the first place in the table that has the text."""

    def damage(path):
        text = (path / "sweep.csv").read_text()
        assert before in text
        (path / "sweep.csv").write_text(text.replace(before, after, 1))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        _without("sweep.json", "no JSON"),
        _without("sweep.json", "[]"),
        _without("sweep.json", '{"groups": [{}], "made_by": []}'),
        _without("sweep.csv", "run,split\na,b\n"),
        _without("sweep.csv", "run,seed,split,weights,step,examples,loss,top1\na,0,test,raw,1\n"),
        _without(
            "sweep.csv",
            "run,seed,split,weights,step,examples,loss,top1,wall_s,params\na,0,test,raw,1,0,1,1,,\n",
        ),
        lambda path: (path / "sweep.csv").write_bytes(b"\xff\xfe\x00"),
        _replaced(",A,,0.1,0,test,", ",B,,0.1,0,test,"),
        _replaced(",raw,160,", ",raw,,"),
        _replaced("\n", "\r"),  # as spreadsheets may save it
        _replaced("run,", 'run,"' + 200_000 * "x" + '",'),
    ],
)
def test_damaged_tables_are_one_line(damage, folder, tmp_path, capsys):
    damage(folder)
    arguments = ["report", str(folder), f"--out={tmp_path}/page.html"]
    assert_one_line(arguments, 65, "is damaged; `resnet-jax sweep … --collect` writes", capsys)


def test_a_field_that_is_no_finite_number_is_text(folder):
    text = (folder / "sweep.csv").read_text()
    (folder / "sweep.csv").write_text(text.replace(",A,,0.1,", ",A,,inf,"))
    document = Page(render_page(sweep_document(epath.Path(folder)))).data
    rates = next(of for of in document["grid"] if of["name"] == "schedule.base_lr")
    assert "inf" in rates["values"]


def test_a_sweep_without_a_finished_run_is_one_line(folder, tmp_path, capsys):
    header = (folder / "sweep.csv").read_text().splitlines()[0]
    (folder / "sweep.csv").write_text(header + "\n")
    arguments = ["report", str(folder), f"--out={tmp_path}/page.html"]
    assert_one_line(arguments, 78, "has no finished run yet", capsys)


def test_the_command_writes_the_page_with_a_note(folder, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert main(["report", str(folder), f"--out={out}"]) == 0
    assert "The directories of the runs aren't here" in capsys.readouterr().out
    assert Page(out.read_text()).data["title"] == "sweep"
