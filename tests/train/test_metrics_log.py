"""The record of a run and its pictures: damage is named, and what can't be written ends no run."""

import json

import pytest
from etils import epath

import resnet_jax
from resnet_jax.checkpoint.workdir import METRICS, NONFINITE
from resnet_jax.config.schema import default_config
from resnet_jax.data.loaders.sampler import IndexSampler
from resnet_jax.errors import DataError, NumericalError, WriteError
from resnet_jax.logging.metrics_log import MetricsLog, read_metrics, salvage_metrics
from resnet_jax.logging.plots import Figures
from resnet_jax.logging.tracking import open_trackers
from resnet_jax.train.nonfinite import NonfiniteRecord

TRAIN = {"step": 2, "epoch": 0.5, "split": "train", "loss": 2.0, "top1": 0.5, "lr": 0.1}
TRAIN |= {"img_per_s": 900.0}
SCORES = {"step": 4, "epoch": 1.0, "split": "validation", "weights": "raw", "loss": 1, "top1": 1.0}
SEEDS = {"std": {"loss": 0.1, "top1": 0.0}, "seeds": {"loss": [2.0, 2.0], "top1": [0.5, 0.5]}}


def _without(record, name):
    return {key: value for key, value in record.items() if key != name}


@pytest.fixture
def warnings(caplog):
    """What the package has warned of."""
    return lambda: [r.getMessage() for r in caplog.records if r.name.startswith("resnet_jax")]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (_without(TRAIN, "img_per_s"), '"img_per_s" is missing'),
        (_without(SCORES, "loss"), '"loss" is missing'),
        (_without(TRAIN, "split"), '"split" is no text'),
        (TRAIN | {"step": 2.5}, '"step" is no number of a step'),
        (TRAIN | {"step": -2}, '"step" is no number of a step'),
        (TRAIN | {"step": 10**30}, '"step" is negative or too large'),
        (TRAIN | {"epoch": -1.0}, '"epoch" is negative or too large'),
        (TRAIN | {"wall_s": 1e308}, '"wall_s" is negative or too large'),
        (TRAIN | {"loss": "low"}, '"loss" is no finite number'),
        (TRAIN | {"loss": 10**400}, '"loss" is no finite number'),
        (TRAIN | {"top1": True}, '"top1" is no finite number'),
        (TRAIN | {"grad_norm": None}, '"grad_norm" is no finite number'),
        (TRAIN | {"loss": float("nan")}, "NaN is no finite number"),
        (SCORES | {"weights": 1}, '"weights" is no text'),
        (TRAIN | SEEDS | {"std": 0.1}, '"std" is no JSON object'),
        (TRAIN | SEEDS | {"seeds": {"loss": [2.0, 2.0]}}, '"top1" is missing in "seeds"'),
        (TRAIN | SEEDS | {"seeds": {"loss": 2.0, "top1": 1}}, '"loss" in "seeds" is no list'),
        (TRAIN | SEEDS | {"seeds": {"loss": [2.0], "top1": [0.5]}}, "other seeds than in the"),
        (TRAIN, "other seeds than in the first line"),
        ([TRAIN], "no JSON object"),
        (json.dumps(TRAIN)[:40], "not JSON"),
        (json.dumps(TRAIN).replace("2.0", "1e999"), '"loss" is no finite number'),
        (json.dumps(TRAIN)[:40] + json.dumps(TRAIN), "not JSON"),
    ],
)
def test_a_damaged_line_is_named_and_what_is_wrong_with_it(line, why, tmp_path):
    text = line if isinstance(line, str) else json.dumps(line)
    good = json.dumps(TRAIN | SEEDS)
    path = tmp_path / METRICS
    path.write_text(f"{good}\n{text}\n{good}\n")
    with pytest.raises(DataError) as error:
        read_metrics(path)
    assert str(error.value).startswith(f"Line 2 of {path} is damaged (")
    assert why in str(error.value)
    assert "\n" not in str(error.value)
    records, damaged = salvage_metrics(path)
    assert records == [TRAIN | SEEDS] * 2
    assert list(damaged) == [2]
    assert damaged[2] in str(error.value)


def test_what_a_run_writes_is_read_and_a_torn_last_line_is_left_out(tmp_path):
    records = [TRAIN, SCORES, {"step": 4, "epoch": 1.0, "split": "diagnostics", "fc/rms": 0.1}]
    path = tmp_path / METRICS
    path.write_text("".join(f"{json.dumps(r)}\n" for r in records) + json.dumps(TRAIN)[:30])
    assert read_metrics(path) == records


@pytest.mark.parametrize(("records", "lost"), [(2, False), (None, False), (3, True), (1, True)])
def test_records_that_were_lost_are_noticed_when_a_run_goes_on(records, lost, tmp_path, warnings):
    """Such as lines that are missing in the middle; a checkpoint knows how many there were."""
    lines = [TRAIN, SCORES, TRAIN | {"step": 6}]
    (tmp_path / METRICS).write_text("".join(f"{json.dumps(r)}\n" for r in lines))
    with MetricsLog(epath.Path(tmp_path), start_step=4, records=records) as log:
        assert log.history == lines[:2]
    told = [w for w in warnings() if f"has 2 of the {records} records that were written" in w]
    assert len(told) == lost


def test_tensorboard_that_cannot_be_written_costs_no_record(tmp_path, warnings):
    (tmp_path / "tensorboard").write_text("a file, where a folder is needed")
    workdir = epath.Path(tmp_path)
    with (
        open_trackers(default_config(), workdir, start_step=0) as trackers,
        MetricsLog(workdir, start_step=0, trackers=trackers) as log,
    ):
        log.write(TRAIN)
        log.write(SCORES)
    assert read_metrics(tmp_path / METRICS) == [TRAIN, SCORES]
    assert ["TensorBoard's copy" in w for w in warnings()] == [True]


def test_a_log_that_cannot_be_written_at_the_end_hides_no_other_error(tmp_path, monkeypatch):
    def full(self):
        raise WriteError("No space left on device.")

    monkeypatch.setattr(MetricsLog, "sync", full)
    with pytest.raises(NumericalError), MetricsLog(epath.Path(tmp_path), start_step=0):
        raise NumericalError("The loss stopped being finite.")
    with pytest.raises(WriteError), MetricsLog(epath.Path(tmp_path), start_step=0):
        pass


def test_examples_of_steps_that_were_not_finite_wait_until_they_can_be_written(tmp_path, warnings):
    blocked = tmp_path / NONFINITE
    blocked.mkdir()
    orders = [IndexSampler(seed=0, num_examples=64, batch_size=32)]
    record = NonfiniteRecord(epath.Path(tmp_path), orders, limit=3, count=0)
    record.write([(0, 1)], "skipped")
    record.write([(0, 2)], "skipped")
    record.sync()
    assert ["its lines are kept in memory" in w for w in warnings()] == [True]
    blocked.rmdir()
    record.sync()
    assert [json.loads(line)["step"] for line in blocked.read_text().splitlines()] == [1, 2]
    record.sync()
    assert len(blocked.read_text().splitlines()) == 2


def test_the_limit_of_skipped_steps_is_named_with_the_count(tmp_path):
    orders = [IndexSampler(seed=0, num_examples=64, batch_size=32)]
    record = NonfiniteRecord(epath.Path(tmp_path), orders, limit=1, count=0)
    record.add(1, "a step was skipped")
    with pytest.raises(NumericalError, match=r"skipped: 2 of at most 1 \(nonfinite\.limit\)\."):
        record.add(1, "a step was skipped")


def test_a_picture_that_cannot_be_written_is_warned_of_until_it_can(tmp_path, warnings):
    figures, outcomes = Figures(epath.Path(tmp_path)), iter([OSError(28, "full")] * 2 + [None] * 2)

    def draw():
        if (error := next(outcomes)) is not None:
            raise error

    for _ in range(4):
        figures.draw("curves.png", draw)
    assert warnings() == [
        f"{tmp_path}/curves.png can't be written (full); the run goes on without it."
    ]


@pytest.mark.thorough
def test_pictures_that_cannot_be_written_end_no_run(tiny_config, tmp_path, warnings):
    """Nor does TensorBoard's folder; each is warned of once."""
    tiny_config.duration = tiny_config.diagnostics.every = 4 * 32.0
    tiny_config.diagnostics.what = ("bn_drift",)
    for name in ("curves.png", "diagnostics.png"):
        (tmp_path / name).mkdir()  # which no file can replace
    (tmp_path / "tensorboard").touch()
    result = resnet_jax.fit(tiny_config, tmp_path)
    assert not result.stopped_early
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 4
    for name in ("curves.png can't be written", "diagnostics.png can't be", "TensorBoard's copy"):
        assert sum(name in w for w in warnings()) == 1, name
