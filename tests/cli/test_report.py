"""resnet-jax report: the file it writes, and what it says."""

import json

import pytest

from resnet_jax.cli.main import main
from tests.cli.mistakes import assert_one_line
from tests.report.pages import Page
from tests.research.fake_run import write_run


def test_the_page_is_written_and_named(tmp_path, capsys):
    write_run(tmp_path / "runs" / "a")
    out = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "runs"), f"--out={out}", "--mistakes=0"]) == 0
    assert capsys.readouterr().out == f"report: {out} (0.1 MB)\n"
    assert Page(out.read_text()).data["title"] == "a"


def test_the_document_of_the_command_has_the_notes(tmp_path, capsys):
    write_run(tmp_path / "runs" / "a")
    out = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "runs"), f"--out={out}", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    note = "a: no confusion matrix and no mistakes, because …/a has no checkpoints here"
    assert document["notes"] == [note]
    assert (document["lines"], document["files"]) == (["a"], [str(out)])
    assert document["bytes"] == out.stat().st_size


def test_committed_results_make_a_page(tmp_path, capsys):
    out = tmp_path / "page.html"
    results = "benchmarks/results/cifar10_table6/resnet20_eighth_seed0"
    assert main(["report", results, f"--out={out}"]) == 0
    assert "has no checkpoints here" in capsys.readouterr().out
    (line,) = Page(out.read_text()).data["lines"]
    assert line["scores"]["test"]["top1"]["mean"] == 0.8742
    assert out.stat().st_size < 200_000


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 78, "nowhere isn't the directory of a run"),
        (["nowhere", "--out=page.pdf"], 64, "--out is page.pdf; its name ends in .html."),
        (["nowhere", "--mistakes=-1"], 64, "--mistakes is -1; it can be 0 to 200."),
        (["http://nowhere"], 64, "http://nowhere isn't a folder's name"),
    ],
)
def test_mistakes_are_one_line(arguments, code, message, capsys):
    assert_one_line(["report", *arguments], code, message, capsys)


def test_a_page_that_cannot_be_written_is_one_line(tmp_path, capsys):
    write_run(tmp_path / "a")
    arguments = ["report", str(tmp_path / "a"), "--mistakes=0", f"--out={tmp_path}/no/page.html"]
    assert_one_line(arguments, 73, "page.html can't be written: No such file", capsys)
