"""Configs, versions and times as the page shows them."""

import json

from resnet_jax.report.fields import config_table, dates, field_text, made_by, times
from resnet_jax.report.reading import read_runs
from resnet_jax.research.compare import differing_fields, find_runs, gather_lines
from tests.research.fake_run import write_run


def _runs(folder):
    return read_runs(find_runs([folder]))[0]


def test_the_table_of_the_config_tells_what_differs_and_what_is_a_default(tmp_path):
    write_run(tmp_path / "a", batch_size=32, data__dir="/home/someone/flowers")
    write_run(tmp_path / "b", batch_size=32, model__width=4, data__dir="/home/other/flowers")
    lines = gather_lines([run.record for run in _runs(tmp_path)])
    table = {row["name"]: row for row in config_table(lines, differing_fields(lines))}
    width = table["model.width"]
    assert width["values"] == ["None", "4"]
    assert (width["differs"], width["is_default"]) == (True, False)
    assert (table["batch_size"]["values"], table["batch_size"]["is_default"]) == (["32"], False)
    assert table["data.dir"]["values"] == ["…/flowers"]
    assert table["optimizer.momentum"]["is_default"]
    assert not {"seed", "seeds"} & {*table}


def test_values_are_short_texts():
    assert field_text((1, 2)) == "(1, 2)"
    assert len(field_text("x" * 10_000)) == 300


def test_equal_origins_are_told_once_whatever_the_summary_holds(tmp_path):
    origins = (
        {"commit": "abc", "versions": {"jax": "0.10"}, "command": "python train.py"},
        {"commit": "abc", "versions": {"jax": "0.10"}, "command": "python train.py --seed=1"},
        {"commit": 3, "versions": ["odd"], "hardware": None, "command": "/home/me/bin/python x"},
    )
    for seed, origin in enumerate(origins):
        path = write_run(tmp_path / f"seed{seed}", seed=seed) / "summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | origin))
    summaries = [(run.name, run.record.summary) for run in _runs(tmp_path)]
    first, odd = made_by(summaries)
    assert first["runs"] == ["seed0", "seed1"]
    assert first["commands"] == ["python train.py", "python train.py --seed=1"]
    assert first["versions"] == {"jax": "0.10"}
    assert (odd["commit"], odd["versions"], odd["hardware"]) == ("3", "odd", None)
    assert "/home" not in odd["commands"][0]


def test_times_and_dates_are_those_of_the_runs(tmp_path):
    for seed, began in ((0, 1_700_000_000), (1, 1_700_003_600)):
        folder = write_run(tmp_path / f"seed{seed}", seed=seed)
        process = {"started": began, "ended": began + 60.0, "start_step": 0}
        (folder / "process.json").write_text(json.dumps(process))
    goodput = {"goodput": 0.75, "seconds": {"step": 30.0, "compile": 10.0}, "restarts": 2}
    (folder / "goodput.json").write_text(json.dumps(goodput))
    runs = _runs(tmp_path)
    assert dates(runs) == {"began": "2023-11-14 22:13 UTC", "ended": "2023-11-14 23:14 UTC"}
    seconds = {"step": 30.0, "compile": 10.0}
    assert times(runs) == [{"run": "seed1", "share": 0.75, "restarts": 2, "seconds": seconds}]
    assert dates([]) is None
