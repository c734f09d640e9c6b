"""Verdicts, and the files and tables of `resnet-jax reproduce`."""

import csv
import dataclasses
import json
import math
import signal

import pytest

from resnet_jax.cli.main import main
from resnet_jax.research import results
from resnet_jax.research.reproduction import Row, Within, overall
from resnet_jax.research.results import COMMITTED
from tests.cli.mistakes import assert_one_line


def _row(*measured, low=-math.inf, high=math.inf, exact=False):
    return Row(
        what="test error, %",
        published=8.75,
        source="a paper",
        data="digits",
        measured=measured,
        accepts=Within(low, high),
        exact=exact,
    )


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (_row(high=9.0), "not run: budget"),
        (_row(8.8, high=9.0), "consistent (n=1)"),
        (_row(8.8, high=9.0, exact=True), "reproduced"),
        (_row(9.2, high=9.0, exact=True), "not reproduced"),
        (_row(9.2, high=9.0), "not reproduced"),
        # The intervals reach 12.706 standard errors, of 0.05, to either side of 8.35 and 9.65.
        (_row(8.3, 8.4, high=9.0), "reproduced"),
        (_row(9.6, 9.7, high=9.0), "not reproduced"),
        (_row(9.6, 9.7, low=8.9, high=9.0), "not reproduced"),
        # 4.303 standard errors, of 0.0577, to either side of 8.8 and 9.2.
        (_row(8.7, 8.8, 8.9, high=9.0), "undecided"),
        (_row(9.1, 9.2, 9.3, high=9.0), "undecided"),
        (_row(8.7, 8.8, 8.9, low=8.6), "undecided"),
        (_row(8.7, 8.8, 8.9, low=8.5, high=9.1), "reproduced"),
        (_row(8.8, 8.8, high=9.0), "reproduced"),  # no spread
        (_row(0.0, 0.0, 0.0, low=0.0), "undecided"),  # neither above nor below the bound
        (_row(0.0, 0.0, high=0.0), "undecided"),
        (_row(0.0, low=0.0, high=0.0, exact=True), "reproduced"),
        (_row(math.inf, 8.0, low=9.0), "not reproduced"),
        (_row(math.nan, 8.0, high=9.0), "not reproduced"),
        (_row(math.inf, high=9.0), "not reproduced"),
    ],
)
def test_a_verdict_needs_seeds_and_room_for_their_spread(row, verdict):
    assert row.verdict == verdict
    json.dumps(row.to_json(), allow_nan=False)


def test_a_table_is_as_good_as_its_worst_row():
    assert overall(["reproduced", "reproduced"]) == "reproduced"
    assert overall(["reproduced", "consistent (n=1)"]) == "consistent (n=1) (1 of 2)"
    assert overall(["not run: budget", "not reproduced"]) == "not reproduced (1 of 2)"
    assert overall(["open", "consistent (n=1)", "open"]) == "open (2 of 3)"
    assert overall(["reproduced", "undecided", "consistent (n=1)"]) == "undecided (1 of 3)"


def test_a_ratio_varies_by_factors():
    ratio = dataclasses.replace(_row(100.0, 1_000.0, 10_000.0, low=1.0), ratio=True)
    assert ratio.verdict == "reproduced"
    assert dataclasses.replace(ratio, ratio=False).verdict == "undecided"
    assert ratio.mean == pytest.approx(1_000.0)
    low, high = ratio.interval
    assert math.sqrt(low * high) == pytest.approx(ratio.mean)
    assert dataclasses.replace(ratio, measured=(1.0, -1.0)).verdict == "not reproduced"


def test_a_row_is_open_until_all_planned_seeds_are_there():
    row = dataclasses.replace(_row(8.7, 8.8, high=99.0), planned=3)
    assert (row.verdict, row.n, row.mean) == ("open", 2, pytest.approx(8.75))
    assert dataclasses.replace(row, measured=(8.7, 8.8, 8.9)).verdict == "reproduced"
    assert dataclasses.replace(row, planned=2).verdict == "reproduced"


def test_an_error_has_the_sampling_error_of_its_images():
    row = dataclasses.replace(_row(8.7, 8.8, 8.9, high=9.0), images=10_000)
    assert row.to_json()["sampling_error"] == pytest.approx(100 * (0.088 * 0.912) ** 0.5 / 100)
    assert _row(8.7, high=9.0).to_json()["sampling_error"] is None


@pytest.mark.parametrize(
    ("within", "text"),
    [
        (Within(2, 2), "= 2"),
        (Within(low=15), "≥ 15"),
        (Within(high=9.35), "≤ 9.35"),
        (Within(4, 30), "4 … 30"),
    ],
)
def test_bounds_as_text(within, text):
    assert str(within) == text


@pytest.mark.thorough
def test_a_table_is_reproduced_and_listed(tmp_path, capsys, monkeypatch):
    assert main(["reproduce", "he2015-table1", f"--workdir={tmp_path}", "--json"]) == 0
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # until the process has ended
    [result] = json.loads(capsys.readouterr().out)["results"]
    assert result["verdict"] == "reproduced"
    stored = json.loads((tmp_path / "he2015-table1.cpu.json").read_text())
    assert {"commit", "versions", "hardware", "seeds", "wall_s"} < set(stored)
    rows = list(csv.DictReader((tmp_path / "he2015-table1.cpu.csv").open()))
    assert [row["what"] for row in rows] == [row["what"] for row in stored["rows"]]
    assert (tmp_path / "he2015-table1.cpu.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "he2015-table1.cpu.pdf").read_bytes().startswith(b"%PDF")

    assert main(["reproduce", "--list", f"--workdir={tmp_path}", "--json"]) == 0
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)["artefacts"]}
    assert (listed["he2015-table1"]["cpu"], listed["he2015-table1"]["committed"]) == (
        "reproduced",
        [],
    )
    assert listed["he2015-table1"]["full"] == "as cpu"
    assert listed["he2015-table1"]["cifar"] == "–"
    committed = json.loads((COMMITTED / "he2016-table1.cpu.json").read_text())["verdict"]
    assert listed["he2016-table1"]["cpu"] == committed
    assert listed["he2016-table1"]["committed"] == ["cpu"]
    assert listed["he2016-table1"]["full"] == "not run: budget"

    monkeypatch.setattr(results, "COMMITTED", tmp_path / "not a checkout")
    assert main(["reproduce", "--list", f"--workdir={tmp_path}", "--json"]) == 0
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)["artefacts"]}
    assert (listed["he2015-fig6"]["cpu"], listed["he2015-fig6"]["committed"]) == ("not run", [])

    for damaged in ("{", "[" * 100_000):
        (tmp_path / "he2015-table1.cpu.json").write_text(damaged)
        arguments = ["reproduce", "--list", f"--workdir={tmp_path}"]
        assert_one_line(arguments, 65, "he2015-table1.cpu.json can't be used", capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Which one? `resnet-jax reproduce --list` names them."),
        (["he2015-table0"], "There is no artefact 'he2015-table0'. Did you mean 'he2015-table"),
        (["he2016-table1", "--size=cifar"], "he2016-table1 has no size 'cifar'."),
        (["he2015-fig6", "--size=cifar", "--runs=x"], "--runs: there is no folder x."),
        (["he2015-fig6", "--seeds=0"], "--seeds is 0; it must be at least 1."),
        (["he2015-fig6", "--budget=-1"], "--budget is -1.0; it can't be negative."),
    ],
)
def test_mistakes(arguments, message, capsys):
    assert_one_line(["reproduce", *arguments], 64, message, capsys)
