"""Curves equal the records, seed by seed, and are thinned evenly."""

import json

import pytest

from resnet_jax.report.curves import curves_of, rounded, thin
from resnet_jax.research.compare import find_runs, gather_lines, read_run
from tests.research.fake_run import write_run


def _curves(folder):
    return curves_of(gather_lines([read_run(run) for run in find_runs([folder])]))


def test_values_are_those_of_the_records(tmp_path):
    folder = write_run(tmp_path / "a", steps=(4, 8, 20), top1=0.7)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    ((train, validation),) = _curves(tmp_path)
    assert (train["split"], validation["split"]) == ("train", "validation")
    for curve in (train, validation):
        own = [r for r in records if r["split"] == curve["split"]]
        assert curve["steps"] == [r["step"] for r in own]
        assert curve["epochs"] == [r["epoch"] for r in own]
        for metric in ("loss", "top1"):
            expected = [pytest.approx([r[metric] for r in own], rel=1e-5)]
            assert curve["values"][metric] == expected
    assert train["values"]["lr"] == [[0.1] * 3]
    assert "grad_norm" not in train["values"]
    assert "lr" not in validation["values"]


def test_seeds_of_one_run_and_of_several_are_alike(tmp_path):
    write_run(tmp_path / "one", seeds=(0, 1, 2))
    write_run(tmp_path / "two" / "seed0", seed=0, batch_size=64)
    write_run(tmp_path / "two" / "seed1", seed=1, batch_size=64, steps=(8, 12, 16))
    (of_one, of_two) = _curves(tmp_path)
    assert of_one[0]["values"]["top1"][2] == pytest.approx([0.31, 0.61, 0.91])
    assert of_one[0]["values"]["lr"] == [[0.1] * 3] * 3
    assert of_two[0]["steps"] == [8, 12]
    assert of_two[0]["values"]["loss"] == [[1.5, 1.0]] * 2


def test_a_record_without_a_metric_is_a_gap(tmp_path):
    metrics = write_run(tmp_path / "a") / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    lines[2] = lines[2][:-1] + ', "grad_norm": 2.0}'
    metrics.write_text("\n".join(lines) + "\n")
    assert _curves(tmp_path)[0][0]["values"]["grad_norm"] == [[None, 2.0, None]]


def test_long_curves_are_thinned(tmp_path):
    write_run(tmp_path / "a", steps=range(1, 5001))
    train, _ = _curves(tmp_path)[0]
    assert (len(train["steps"]), train["recorded"]) == (400, 5000)
    assert (train["steps"][0], train["steps"][-1]) == (1, 5000)
    gaps = {b - a for a, b in zip(train["steps"], train["steps"][1:], strict=False)}
    assert gaps == {12, 13}


def test_a_page_of_many_curves_has_fewer_points_of_each(tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"seed{seed}", steps=range(1, 450), seed=seed)
    lines = gather_lines([read_run(run) for run in find_runs([tmp_path])])
    (few,), many = curves_of(lines), curves_of(lines * 500)
    assert len(few[0]["steps"]) == 400
    assert {len(curve["steps"]) for line in many for curve in line} == {40}


def test_thinning_keeps_short_curves():
    assert thin([3, 5, 9], 3) == [3, 5, 9]
    assert thin(range(10), 4) == [0, 3, 6, 9]
    assert rounded(None) is None
    assert rounded(0.123456789) == 0.123457
