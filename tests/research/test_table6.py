"""Reproductions of the size "cifar" from finished runs, which may be some of all."""

import json
import math
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
from etils import epath

import resnet_jax
from resnet_jax.cli.main import main
from resnet_jax.config.io import describe_differences, to_json
from resnet_jax.errors import DataError
from resnet_jax.research import runner as runner_module
from resnet_jax.research.catalogue import REPRODUCTIONS
from resnet_jax.research.configs import digits
from resnet_jax.research.papers import balduzzi2017
from resnet_jax.research.papers.balduzzi2017 import path_derivatives
from resnet_jax.research.runner import Runner, TrainedRun
from resnet_jax.research.sweep import PlannedRun, plan_runs
from resnet_jax.research.table6 import planned_runs
from tests.cli.mistakes import assert_one_line
from tests.research.tiny import SHAPE, make_tiny_network

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "benchmarks" / "results" / "cifar10_table6"
FINISHED = "resnet20_eighth_seed0"
OF_CIFAR = [name for name, of in REPRODUCTIONS.items() if "cifar" in of.runs]


def _reproduce(capsys, *arguments):
    return _reproduce_aloud(capsys, *arguments)[0]


def _reproduce_aloud(capsys, *arguments):
    """The results by name, and the lines of the log."""
    assert main(["reproduce", "--size=cifar", *map(str, arguments), "--json"]) == 0
    shown = capsys.readouterr()
    results = json.loads(shown.out)["results"]
    return {result["artefact"]: result for result in results}, shown.err.splitlines()


@pytest.fixture
def only_one(tmp_path):
    """A folder with the one run that is finished, without its checkpoints."""
    shutil.copytree(COMMITTED / FINISHED, tmp_path / "finished" / FINISHED)
    return tmp_path / "finished"


def test_the_runs_are_those_of_the_paper_and_of_the_committed_configs():
    runs = planned_runs()
    assert len(runs) == 13
    full = runs["resnet20_full_seed0"].config
    assert full.duration == 64_000 * 128
    assert tuple(full.schedule.boundaries) == (32_000 * 128, 48_000 * 128)
    deep = runs["plain56_eighth_seed2"].config
    assert (deep.model.name, deep.seed, deep.duration) == ("plain56", 2, 8_000 * 128)
    for folder in COMMITTED.iterdir():
        old = (folder / "config.json").read_text()
        assert describe_differences(old, to_json(runs[folder.name].config)) == []


def test_curves_and_tables_need_no_checkpoints(only_one, tmp_path, capsys):
    names = ("he2015-fig6", "he2015-table6")
    results = _reproduce(capsys, *names, f"--runs={only_one}", f"--workdir={tmp_path}")
    missing = [name for name in planned_runs() if name not in (FINISHED, "resnet20_full_seed0")]
    assert sorted(results["he2015-fig6"]["missing"]) == sorted(missing)
    assert {row["verdict"] for row in results["he2015-fig6"]["rows"]} == {"open"}
    assert results["he2015-fig6"]["verdict"] == "open"
    table = {(row["what"], row["data"]): row for row in results["he2015-table6"]["rows"]}
    row = table["ResNet-20, test error, %", "CIFAR-10, 8,000 steps"]
    summary = json.loads((only_one / FINISHED / "summary.json").read_text())
    assert row["measured"] == [pytest.approx(100 * (1 - summary["final"]["test"]["top1"]))]
    assert (row["n"], row["planned"], row["published"]) == (1, 3, None)
    assert "8.75" in row["source"]
    assert row["verdict"] == "open"
    assert row["mean"] == row["measured"][0]
    assert table["ResNet-20, test error, %", "CIFAR-10, 64,000 steps"]["verdict"] == "open"
    assert "resnet20_full_seed0" in results["he2015-table6"]["missing"]
    assert main(["reproduce", *names[1:], "--size=cifar", f"--workdir={tmp_path}"]) == 0
    shown = capsys.readouterr().out
    assert "missing, or without weights" in shown
    assert "resnet-jax sweep --config=configs/cifar10_table6.py" in shown


def test_a_network_without_checkpoints_is_the_published_one_of_its_log(only_one):
    runner = Runner(only_one, size="cifar", seeds=(0, 1))
    [run] = runner.collect(["resnet20"], weights=True).values()
    assert run.seeds == (0,)
    assert runner.missing == ["resnet20_eighth_seed1"]
    network = run.network(0)
    assert (network.step, network.image_shape) == (8000, (32, 32, 3))
    assert network.normalization["mean"].shape == (32, 32, 3)
    log = only_one / FINISHED / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[1:]))  # another log, of which no weights are published
    other = epath.Path(shutil.copytree(only_one, only_one.with_name("other")))
    runner = Runner(other, size="cifar", seeds=(0,))
    assert runner.collect(["resnet20"], weights=True) == {}
    assert list(runner.collect(["resnet20"])) == ["resnet20"]


def test_a_run_of_another_config_is_missing(only_one):
    path = only_one / FINISHED / "config.json"
    path.write_text(path.read_text().replace('"weight_decay": 0.0001', '"weight_decay": 0.001'))
    runner = Runner(only_one, size="cifar", seeds=(0,))
    assert runner.collect(["resnet20"]) == {}
    assert runner.missing == [FINISHED]


def _edit(path, change):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in change(lines)))


def _scores(**changed):
    """The raw test score changed, in the log and in the summary."""

    def change(folder):
        is_last = {"split": "test", "weights": "raw"}.items()
        _edit(
            folder / "metrics.jsonl",
            lambda lines: [r | changed if is_last <= r.items() else r for r in lines],
        )
        summary = json.loads((folder / "summary.json").read_text())
        summary["final"]["test"] |= changed
        (folder / "summary.json").write_text(json.dumps(summary))

    return change


def _log(change):
    return lambda folder: _edit(folder / "metrics.jsonl", change)


def _summary(text):
    return lambda folder: (folder / "summary.json").write_text(text)


def _summary_folder(folder):
    (folder / "summary.json").unlink()
    (folder / "summary.json").mkdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_log(lambda lines: lines[:100]), "metrics.jsonl has not the test score of step 8,000"),
        (
            _log(lambda lines: [r for r in lines if r["split"] != "test"]),
            "metrics.jsonl has not the test score",
        ),
        (
            _log(lambda lines: [{k: v for k, v in r.items() if k != "examples"} for r in lines]),
            "metrics.jsonl has not the test score",
        ),
        (
            _log(lambda lines: [r for r in lines if r["split"] != "train"]),
            "metrics.jsonl has no training record",
        ),
        (_scores(examples=0), "summary.json has a test score that can't be"),
        (_scores(top1=7.5), "summary.json has a test score that can't be: top-1 7.5 of 10000"),
        (_scores(top1="0.9"), "top1"),
        (_summary(""), "summary.json is damaged"),
        (_summary("{}"), "summary.json is damaged"),
        (_summary('{"steps": "8000", "final": {}}'), "summary.json is damaged"),
        (_summary('{"steps": 8000, "final": {"test": 3}}'), "summary.json is damaged"),
        (_summary_folder, "summary.json can't be read"),
    ],
)
def test_an_incomplete_run_is_one_line(damage, message, only_one, tmp_path, capsys):
    damage(only_one / FINISHED)
    arguments = ["reproduce", "he2015-fig6", "he2015-table6", "--size=cifar"]
    arguments += [f"--runs={only_one}", f"--workdir={tmp_path}"]
    assert_one_line(arguments, 65, message, capsys)


def test_a_config_of_another_version_is_named(only_one, tmp_path, capsys):
    path = only_one / FINISHED / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"a": 1}))
    arguments = ["reproduce", "he2015-table6", "--size=cifar", f"--runs={only_one}"]
    message = f"{FINISHED}/config.json can't be used: it has a field a"
    assert_one_line([*arguments, f"--workdir={tmp_path}"], 78, message, capsys)


def test_checkpoints_of_other_steps_do_not_count(only_one, monkeypatch):
    folder = epath.Path(only_one / FINISHED)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / ".DS_Store").write_bytes(b"")
    assert TrainedRun({0: folder}).network(0).source == "resnet20.cifar10_eighth"
    (folder / "checkpoints" / "250").mkdir()
    monkeypatch.setattr(
        runner_module, "restore_run", lambda *_, **__: types.SimpleNamespace(step=250)
    )
    assert TrainedRun({0: folder}).network(0).source == "resnet20.cifar10_eighth"
    monkeypatch.setattr(runner_module, "find_by_log", lambda _: None)
    with pytest.raises(DataError, match="has no checkpoint of its last step, 8,000"):
        TrainedRun({0: folder}).network(0)


def test_errors_of_the_last_epoch_and_of_the_last_step(only_one):
    run = TrainedRun({0: epath.Path(only_one / FINISHED)})
    [error] = run.train_errors()
    records = [json.loads(line) for line in (only_one / FINISHED / "metrics.jsonl").open()]
    top1 = [r["top1"] for r in records if r["split"] == "train"]
    # 352 steps are an epoch, and every 50th is a log point.
    assert error == pytest.approx(100 * (1 - np.mean(top1[-8:])), abs=1e-3)
    assert run.test_errors() == (pytest.approx(12.58),)


def test_seeds_with_other_log_points_are_refused(only_one):
    other = shutil.copytree(only_one / FINISHED, only_one / "other")
    lines = (other / "metrics.jsonl").read_text().splitlines(keepends=True)
    (other / "metrics.jsonl").write_text("".join(lines[1:]))
    config = json.loads((other / "config.json").read_text()) | {"seed": 1}
    (other / "config.json").write_text(json.dumps(config))
    run = TrainedRun({0: epath.Path(only_one / FINISHED), 1: epath.Path(other)})
    with pytest.raises(DataError, match="have train records of different steps"):
        run.curve("train", "loss")
    assert len(run.test_errors()) == 2


def test_the_derivative_along_a_path_is_that_of_the_logit():
    model, variables = make_tiny_network((1, 1))
    starts, ends = np.random.default_rng(0).normal(size=(2, 2, *SHAPE)).astype(np.float32)
    labels = np.array([3, 1])
    found = path_derivatives(model, variables, starts, ends, labels, points=5)
    assert found.shape == (2, 5)
    step = 1e-3
    for pair, label in enumerate(labels):
        for point, t in enumerate(np.linspace(0, 1, 5)):
            ts = np.array([t - step, t + step])[:, None, None, None]
            images = starts[pair] + ts * (ends[pair] - starts[pair])
            low, high = model.apply(variables, images.astype(np.float32))[:, label]
            expected = (high - low) / (2 * step)
            assert math.isclose(found[pair, point], expected, rel_tol=0.1, abs_tol=0.05)


@pytest.fixture(scope="module")
def tiny_runs(tmp_path_factory):
    """Tiny networks trained on digits, under the names of the sweep; one has no second seed."""
    folder = tmp_path_factory.mktemp("runs")
    fields = {"model.stage_sizes": (2, 2), "model.width": 4, "model.stem_width": 4}
    base = digits("resnet20", fields | {"duration": 640.0, "eval_every": 320.0})
    base.data.train, base.data.validation = "train[:320]", "train[1300:1400]"
    base.data.test = "test[:100]"
    names = [f"{n}_eighth_seed0" for n in ("resnet20", "plain20", "resnet56", "plain56")]
    sweep = [{"name": n, "model.name": n.partition("_")[0]} for n in names]
    sweep.append({"name": "resnet20_eighth_seed1", "model.name": "resnet20", "seed": 1})
    planned = {run.name: run for run in plan_runs(base, sweep)}
    for n in ("resnet56_eighth_seed0", "plain56_eighth_seed0"):  # the names give other configs
        planned[n].config.model.stage_sizes = (3, 3)
    for run in planned.values():
        resnet_jax.fit(run.config, folder / run.name)
    # Planned, and not trained.
    config = planned["plain20_eighth_seed0"].config.copy_and_resolve_references()
    config.seed = 1
    missing = PlannedRun("plain20_eighth_seed1", ("seed",), config, is_named=True)
    return folder, planned | {missing.name: missing}


@pytest.mark.thorough
def test_all_are_reproduced_from_tiny_runs(tiny_runs, tmp_path, capsys, monkeypatch):
    folder, planned = tiny_runs
    monkeypatch.setattr(runner_module, "planned_runs", lambda: planned)
    monkeypatch.setattr(balduzzi2017, "_PAIRS", 2)
    assert len(OF_CIFAR) == 6
    arguments = (*OF_CIFAR, "--seeds=2", f"--runs={folder}", f"--workdir={tmp_path}")
    results, lines = _reproduce_aloud(capsys, *arguments)
    assert list(results) == OF_CIFAR
    for name, result in results.items():
        assert result["size"] == "cifar"
        assert (tmp_path / f"{name}.cifar.png").stat().st_size > 5000
        for row in result["rows"]:
            assert (row["verdict"] == "open") == (row["n"] < row["planned"])
        if name != "veit2016-lesion":  # which has no plain-56
            assert any(row["n"] for row in result["rows"])
        assert result["missing"] == ["plain20_eighth_seed1"]
    for name in ("he2015-fig6", "he2015-fig7", "li2018", "veit2016-lesion"):
        assert all(row["n"] == 1 or "20" in row["what"] for row in results[name]["rows"]), name
    two = results["he2015-table6"]["rows"][1]
    assert (two["what"], two["n"]) == ("ResNet-20, test error, %", 2)
    # A difference is of the seeds that both have.
    [of_20] = [r for r in results["he2015-fig7"]["rows"] if "plain20" in r["what"]]
    assert of_20["n"] == 1
    deleted = results["veit2016-lesion"]["data"]["resnet20"]["one"]
    assert np.shape(deleted) == (2, 4)  # seeds, blocks
    # 1 whole, 4 without a block, 10 draws of 1 to 3 blocks, and 10 of each of 6 numbers of swaps.
    assert "resnet20, seed 1: 95 tests of 100 images" in lines
    assert "resnet20, seed 1: the loss at 121 points" in lines
