"""resnet-jax mlperf: the record of a run as MLPerf's log."""

import json

from resnet_jax.cli.main import main
from tests.cli.mistakes import assert_one_line


def _events(capsys, *arguments):
    assert main(["mlperf", *map(str, arguments)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(":::MLLOG {") for line in lines)
    return [json.loads(line.removeprefix(":::MLLOG ")) for line in lines]


def test_a_run_that_does_not_reach_the_target_is_aborted(whole, capsys):
    events = _events(capsys, whole)
    keys = [event["key"] for event in events]
    assert keys[0] == "init_start"
    assert keys.index("init_stop") < keys.index("run_start") < keys.index("eval_start")
    times = [event["time_ms"] for event in events]
    assert times == sorted(times)
    assert keys.count("eval_accuracy") == 3  # on the validation split
    summary = json.loads((whole / "summary.json").read_text())
    last = next(e for e in reversed(events) if e["key"] == "eval_accuracy")
    assert last["value"] == summary["final"]["validation"]["top1"]
    assert events[-1]["key"] == "run_stop"
    assert events[-1]["metadata"] == {"status": "aborted"}
    assert next(e for e in events if e["key"] == "global_batch_size")["value"] == 32


def test_a_run_ends_where_it_reaches_the_target(whole, capsys):
    events = _events(capsys, whole, "--target=0.0001")
    assert [event["key"] for event in events].count("eval_accuracy") == 1
    assert events[-1]["metadata"] == {"status": "success"}


def test_mistakes_are_one_line(capsys):
    assert_one_line(["mlperf", "none"], 78, "isn't the directory of a run", capsys)
    assert_one_line(["mlperf", "none", "--target=76"], 64, "--target is 76.0", capsys)
