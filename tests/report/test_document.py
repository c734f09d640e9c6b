"""The document of a page: what it says of runs, always in the same bytes."""

import json
import shutil

import pytest
from scipy import stats

from resnet_jax.report.document import report_document
from resnet_jax.report.page import render_page
from resnet_jax.research.compare import find_runs
from tests.report.pages import Page
from tests.research.fake_run import write_run

_TAG = "<img src=x onerror=alert(1)>"


def _document(folder, mistakes=0):
    return report_document(find_runs([folder]), mistakes=mistakes)


@pytest.fixture
def sweep(tmp_path):
    folder = tmp_path / "sweep"
    for width, tops in ((4, (0.80, 0.82, 0.85)), (8, (0.90, 0.91, 0.93))):
        for seed, top1 in enumerate(tops):
            name = f"width={width},seed={seed}"
            write_run(folder / name, top1=top1, model__width=width, seed=seed)
    return folder


def test_the_json_block_has_the_curves_the_scores_and_the_intervals(sweep):
    document = Page(render_page(_document(sweep))).data
    assert document["title"] == "sweep"
    narrow, wide = document["lines"]
    assert (narrow["label"], narrow["seeds"]) == ("width=4", [0, 1, 2])
    assert narrow["differs"] == {"model.width": "4"}
    score = wide["scores"]["test"]
    assert score["top1"]["mean"] == pytest.approx((0.90 + 0.91 + 0.93) / 3)
    assert score["values"] == {"0": 0.9, "1": 0.91, "2": 0.93}
    tops = [0.90, 0.91, 0.93]
    expected = stats.t.interval(0.95, 2, loc=sum(tops) / 3, scale=stats.sem(tops))
    assert score["interval"] == pytest.approx(expected, rel=1e-5)
    assert wide["versus"]["test"] == "paired t"
    assert wide["curves"][0]["values"]["loss"] == [[3.0, 1.5, 1.0]] * 3
    assert document["grid"] == [{"name": "model.width", "values": [4, 8]}]
    assert (wide["wall_s"], wide["examined"]) == (6.0, None)


def test_the_same_runs_are_the_same_bytes_wherever_they_lie(sweep, tmp_path):
    copy = shutil.copytree(sweep, tmp_path / "elsewhere" / "sweep")
    first, second = (render_page(_document(folder)) for folder in (sweep, copy))
    assert first == second
    assert str(tmp_path) not in first


def test_a_single_seed_has_no_interval_over_seeds(tmp_path):
    write_run(tmp_path / "a", top1=0.9)
    document = _document(tmp_path)
    (line,) = document["lines"]
    score = line["scores"]["test"]
    assert score["interval"] is None
    assert score["sampling_error"] == pytest.approx((0.9 * 0.1 / 100) ** 0.5)
    assert (document["title"], document["grid"], document["dates"]) == ("a", [], None)


def test_hostile_names_and_values_stay_text(tmp_path):
    folder = write_run(tmp_path / _TAG.replace("/", ""), data__name=_TAG, init_from="</script>")
    summary = json.loads((folder / "summary.json").read_text())
    summary |= {"command": _TAG, "versions": {_TAG: _TAG}, "hardware": "\x1b[2J\u202e"}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text('{"step": 1, "split": "<script>alert(1)</script>"}\n')
    page = Page(render_page(_document(tmp_path)))
    assert page.data["lines"][0]["data"] == _TAG
    assert page.data["made_by"][0]["hardware"] == "\\x1b[2J\\u202e"
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert not [tag for tag, _ in page.tags if tag == "img"]


def test_times_that_cannot_be_are_not_counted(tmp_path):
    for seed, wall_s in enumerate((1e308, float("nan"), "long", 3.0)):
        path = write_run(tmp_path / f"seed{seed}", seed=seed) / "summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"wall_s": wall_s}))
    document = _document(tmp_path)
    assert document["lines"][0]["wall_s"] == 3.0
    render_page(document)


def test_an_integer_beyond_floats_is_text(tmp_path):
    for name, number in (("a", 10**400), ("b", 2)):
        path = write_run(tmp_path / name) / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"precise_bn": number}))
    document = Page(render_page(_document(tmp_path))).data
    (grid,) = document["grid"]
    assert [type(value) for value in grid["values"]] == [str, int]


def test_a_run_that_is_examined_has_its_mistakes_on_the_page(whole):
    document = _document(whole, mistakes=3)
    (line,) = document["lines"]
    assert len(line["examined"]["mistakes"]) == 3
    assert document["notes"] == []
    assert line["params"] is not None
    assert document["times"][0]["share"] > 0
    assert render_page(document) == render_page(_document(whole, mistakes=3))


def test_lines_without_scores_are_shown(tmp_path):
    write_run(tmp_path / "a", finished=False)
    write_run(tmp_path / "b", batch_size=64)
    document = _document(tmp_path, mistakes=1)
    assert [line["finished"] for line in document["lines"]] == [False, True]
    assert document["lines"][0]["scores"] == {}
    assert len(document["notes"]) == 3  # not finished, and no checkpoints of both
    render_page(document)
