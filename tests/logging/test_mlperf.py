"""MLPerf's log, of records made by hand."""

import json

import pytest
from etils import epath

from resnet_jax.checkpoint.workdir import CONFIG, METRICS
from resnet_jax.config.io import to_json
from resnet_jax.config.schema import default_config
from resnet_jax.logging.mlperf import mlperf_log


def _trained(step, wall_s, **fields):
    where = {"step": step, "epoch": step / 100, "split": "train", "lr": 0.1}
    return where | {"loss": 0.1, "top1": 0.99, "img_per_s": 32.0, "wall_s": wall_s} | fields


def _scored(step, wall_s, top1, split="validation", weights="raw"):
    where = {"step": step, "epoch": step / 100, "split": split, "weights": weights}
    return where | {"loss": 0.1, "wall_s": wall_s, "examples": 360, "top1": top1}


@pytest.fixture
def events(tmp_path):
    """Return a function from records and config fields to the events of the run, target 0.9."""

    def read(records, **fields):
        config = default_config()
        config.update({"batch_size": 32} | fields)
        (tmp_path / CONFIG).write_text(to_json(config))
        (tmp_path / METRICS).write_text("".join(json.dumps(r) + "\n" for r in records))
        lines = mlperf_log(epath.Path(tmp_path), target=0.9)
        found = [json.loads(line.removeprefix(":::MLLOG ")) for line in lines]
        began = found[0]["time_ms"]
        return [event | {"time_ms": event["time_ms"] - began} for event in found]

    return read


def _only(events, key):
    (found,) = (event for event in events if event["key"] == key)
    return found


@pytest.mark.parametrize(
    ("split", "accuracies", "status"),
    [("validation", [0.8], "aborted"), ("test", [0.95], "success")],
)
def test_the_test_split_counts_only_without_validation(events, split, accuracies, status):
    records = [_trained(10, 20.0), _scored(20, 40.0, 0.95, split="test")]
    if split == "validation":
        records.insert(1, _scored(20, 35.0, 0.8))
    found = events(records)
    assert [e["value"] for e in found if e["key"] == "eval_accuracy"] == accuracies
    assert _only(found, "run_stop")["metadata"] == {"status": status}


@pytest.mark.parametrize(
    ("unit", "warmup", "epochs"), [("epochs", 5.0, 5.0), ("examples", 6400.0, 2.0)]
)
def test_the_warm_up_is_in_epochs(events, unit, warmup, epochs):
    records = [_trained(10, 20.0), _scored(20, 40.0, 0.8)]  # 3,200 examples are an epoch
    found = events(records, duration_unit=unit, schedule={"warmup": warmup})
    assert _only(found, "opt_learning_rate_warmup_epochs")["value"] == epochs


@pytest.mark.parametrize(
    ("records", "start_s"),
    [
        # 320 examples at 32 a second
        ([_trained(10, 25.0), _scored(20, 40.0, 0.8)], 15.0),
        # an evaluation, which isn't in the speed, came before the first record
        ([_scored(5, 12.0, 0.1), _trained(10, 25.0)], 12.0),
        ([_trained(10, 5.0), _scored(20, 40.0, 0.8)], 0.0),
        ([_trained(10, 25.0, img_per_s=0.0), _scored(20, 40.0, 0.8)], 25.0),
        ([_scored(20, 40.0, 0.8)], 40.0),
    ],
)
def test_the_run_starts_before_its_first_record(events, records, start_s):
    found = events(records)
    assert _only(found, "init_stop")["time_ms"] == _only(found, "run_start")["time_ms"]
    assert _only(found, "run_start")["time_ms"] == 1000 * start_s
    times = [event["time_ms"] for event in found]
    assert times == sorted(times)
