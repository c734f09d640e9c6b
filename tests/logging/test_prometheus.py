"""The file for Prometheus, read by the parser of Prometheus's own library."""

import json
import os
import time

import pytest
from etils import epath
from prometheus_client.parser import text_string_to_metric_families

import resnet_jax
from resnet_jax.logging import prometheus
from resnet_jax.logging.prometheus import PrometheusFile
from tests.conftest import make_tiny_config
from tests.logging.test_status import GOODPUT, SCORED, TRAIN


def _samples(path):
    """{(name, labels beside workdir): value} of a file of gauges, each with a help."""
    found = {}
    for family in text_string_to_metric_families(path.read_text()):
        assert (family.type, family.name[:11]) == ("gauge", "resnet_jax_")
        assert family.documentation
        for sample in family.samples:
            others = tuple(v for k, v in sorted(sample.labels.items()) if k != "workdir")
            assert sample.timestamp is None  # node_exporter refuses files with timestamps
            found[(sample.name.removeprefix("resnet_jax_"), *others)] = sample.value
    return found


@pytest.fixture
def file(tmp_path):
    (tmp_path / "collector").mkdir()
    workdir = epath.Path(tmp_path / "run")
    return PrometheusFile(epath.Path(tmp_path / "collector"), workdir, total_steps=100)


def test_the_file_has_the_last_numbers(file, tmp_path):
    (tmp_path / "run" / "checkpoints" / "16").mkdir(parents=True)
    os.utime(tmp_path / "run" / "checkpoints" / "16", (1e9, 1e9))
    (tmp_path / "run" / "goodput.json").write_text(json.dumps(GOODPUT))
    averages = SCORED | {"weights": "ema", "top1": 0.75}
    before = time.time()
    file.write([TRAIN | {"step": 5, "loss": 9.0}, SCORED, averages, TRAIN])
    samples = _samples(file.path)
    assert before <= samples.pop(("last_log_timestamp_seconds",)) <= time.time()
    assert samples.pop(("checkpoint_timestamp_seconds",)) == pytest.approx(1e9, abs=1)
    assert samples == {
        ("running",): 1,
        ("step",): 20,
        ("planned_steps",): 100,
        ("epoch",): 0.5,
        ("train_loss",): 2.0,
        ("train_top1",): 0.25,
        ("learning_rate",): 0.1,
        ("images_per_second",): 64.0,
        ("score_loss", "validation", "raw"): 1.5,
        ("score_loss", "validation", "ema"): 1.5,
        ("score_top1", "validation", "raw"): 0.5,
        ("score_top1", "validation", "ema"): 0.75,
        ("checkpoint_step",): 16,
        ("goodput_ratio",): 0.75,
        ("restarts",): 2,
        ("phase_seconds", "step"): 3.0,
        ("phase_seconds", "lost"): 1.0,
    }
    assert [path.suffix for path in file.path.parent.iterdir()] == [".prom"]  # no draft is left


def test_a_run_that_ends_says_so_and_one_without_records_has_few_numbers(file):
    file.close([])
    samples = _samples(file.path)
    assert (samples["running",], samples["step",]) == (0, 0)
    assert ("train_loss",) not in samples


def test_it_is_written_every_few_seconds_at_most(file, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(prometheus.time, "monotonic", lambda: now[0])
    for second, step in ((0, 1), (4.9, 2), (5.0, 3), (6, 4)):
        now[0] = 100.0 + second
        file.write([TRAIN | {"step": step}])
        assert _samples(file.path)["step",] == {1: 1, 2: 1, 3: 3, 4: 3}[step]
    file.close([TRAIN | {"step": 4}])
    assert _samples(file.path)["step",] == 4


def test_a_slow_bucket_takes_a_hundredth_of_the_time(file, monkeypatch):
    now, reads = [100.0], []

    def read(workdir):
        reads.append(now[0])
        now[0] += 2.0

    monkeypatch.setattr(prometheus.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(prometheus, "newest_checkpoint", read)
    while now[0] < 1100.0:
        file.write([TRAIN])
        now[0] += 1.0
    assert len(reads) == 5


@pytest.mark.parametrize("name", ['a "quoted" name', "back\\slash", "line\nbreak", "ünï — 2"])
def test_any_name_of_a_run_is_a_label(name, tmp_path):
    file = PrometheusFile(epath.Path(tmp_path), epath.Path(tmp_path / name), total_steps=1)
    file.close([])
    assert file.path.name.isascii()
    for family in text_string_to_metric_families(file.path.read_text()):
        assert family.samples[0].labels == {"workdir": str(tmp_path / name)}


def test_runs_of_one_name_have_files_of_their_own(tmp_path):
    folder = epath.Path(tmp_path)
    paths = {PrometheusFile(folder, folder / of / "run", total_steps=1).path for of in "ab"}
    assert len(paths) == 2


def test_runs_of_one_relative_name_have_files_of_their_own(tmp_path, monkeypatch):
    paths = []
    for of in "ab":
        (tmp_path / of).mkdir()
        monkeypatch.chdir(tmp_path / of)
        file = PrometheusFile(epath.Path(tmp_path), epath.Path("runs/x"), total_steps=1)
        file.close([])
        paths.append(file.path)
        for family in text_string_to_metric_families(file.path.read_text()):
            assert family.samples[0].labels == {"workdir": str(tmp_path / of / "runs/x")}
    assert paths[0] != paths[1]


def test_a_file_that_cannot_be_written_is_one_warning(file, monkeypatch):
    said = []
    monkeypatch.setattr(prometheus._log, "warning", lambda text, *args: said.append(text % args))
    file.path.parent.rmdir()
    for _ in range(3):
        file.close([TRAIN])
    reason = "can't be written (No such file or directory); the run goes on."
    assert said == [f"{file.path} {reason}"]
    file.path.parent.mkdir()
    file.close([TRAIN])
    assert _samples(file.path)["step",] == 20


@pytest.mark.thorough
def test_a_run_writes_it(tmp_path):
    config = make_tiny_config()
    config.prometheus_dir = str(tmp_path / "collector")
    (tmp_path / "collector").mkdir()
    assert resnet_jax.fit(config, tmp_path / "run", stop_at_step=6).stopped_early
    (path,) = (tmp_path / "collector").iterdir()
    samples = _samples(path)
    assert (samples["running",], samples["step",], samples["planned_steps",]) == (0, 5, 12)
    assert samples["checkpoint_step",] == 6
    result = resnet_jax.fit(config, tmp_path / "run")
    samples = _samples(path)
    assert samples["score_top1", "test", "raw"] == result.evaluation["test"].top1
    assert samples["step",] == 12
