"""A run's record in the format of MLPerf Training's logs.

One JSON object per line after ":::MLLOG", with the keys of mlcommons/logging for ResNet:
intervals of initialisation, of the run, and of each evaluation; accuracies; the hyper-parameters
that its rules ask for. A run reached the target when an evaluation on the validation split did. Of
a run without validation scores, the scores on the test split count instead.

Records have the time at which they were written. So the start of the run is computed: the time of
the first training record, less its examples / img_per_s. The speed is without pauses, such as an
evaluation, so the start may be too late where a pause came before the first record. The start is
never after the first score.
"""

import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from resnet_jax.checkpoint.run_config import config_of
from resnet_jax.checkpoint.workdir import CONFIG, METRICS
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.logging.metrics_log import read_metrics
from resnet_jax.utils.paths import as_path, modified_s

_PREFIX = ":::MLLOG "


def mlperf_log(workdir: epath.PathLike, *, target: float) -> list[str]:
    """Return the lines of a run's log, in the order of time.

    Args:
        workdir: directory of a run, finished or not.
        target: top-1 accuracy, in 0…1, at which the run ends.

    Raises:
        ConfigError: `workdir` isn't a run, or a run of several seeds.
        DataError: metrics.jsonl is damaged, or has no scores of a held-out split.
    """
    workdir = as_path(workdir)
    config = config_of(workdir)
    if config.seeds:
        raise ConfigError(f"{workdir} is of several seeds; MLPerf's log is of a run with one.")
    records = read_metrics(workdir / METRICS)
    scores = _scores(records, "validation") or _scores(records, "test")
    if not scores or "wall_s" not in scores[0]:
        raise DataError(f"{workdir / METRICS} has no scores with their times yet.")
    began_ms = round(1000 * (modified_s(workdir / CONFIG) or 0.0))
    lines = []
    for event, seconds, key, value, about in _events(config, records, scores, target):
        fields = {
            "namespace": "",
            "time_ms": began_ms + round(1000 * seconds),
            "event_type": event,
            "key": key,
            "value": value,
            "metadata": about,
        }
        lines.append(_PREFIX + json.dumps(fields))
    return lines


def _scores(records: list[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    """Return the records of evaluations of the parameters themselves on a split."""
    return [r for r in records if r["split"] == split and r.get("weights") == "raw"]


def _run_start_s(config: Any, records: list[dict[str, Any]], scores: list[dict[str, Any]]) -> float:
    """Return the second at which training began, as the module's docstring says."""
    first_score_s = scores[0]["wall_s"]
    first = next((r for r in records if r["split"] == "train" and "wall_s" in r), None)
    if first is None:
        return first_score_s
    speed = first["img_per_s"]
    trained_s = first["step"] * config.batch_size / speed if speed > 0 else 0.0
    return min(max(0.0, first["wall_s"] - trained_s), first_score_s)


def _warmup_epochs(config: Any, records: list[dict[str, Any]]) -> float | None:
    """Return the length of the warm-up in epochs.

    The examples of an epoch follow from the step and the epoch of the last record. None if the
    warm-up is in examples, and no record has a whole ten-thousandth of an epoch.
    """
    warmup = config.schedule.warmup
    if config.duration_unit == "epochs" or not warmup:
        return float(warmup)
    last = max(records, key=lambda r: r["step"])
    if not last["step"] or not last["epoch"]:
        return None
    return round(warmup * last["epoch"] / (last["step"] * config.batch_size), 4)


_Event = tuple[str, float, str, Any, dict[str, Any]]


def _events(
    config: Any, records: list[dict[str, Any]], scores: list[dict[str, Any]], target: float
) -> Iterator[_Event]:
    """Yield (type, second, key, value, metadata) of each event."""
    batch, schedule = config.batch_size, config.schedule
    first = _run_start_s(config, records, scores)
    point, begin, end = "POINT_IN_TIME", "INTERVAL_START", "INTERVAL_END"
    yield begin, 0.0, "init_start", None, {}
    for key, value in (
        ("submission_benchmark", "resnet"),
        ("seed", config.seed),
        ("global_batch_size", batch),
        ("gradient_accumulation_steps", config.accumulate),
        ("opt_name", config.optimizer.name),
        ("opt_base_learning_rate", schedule.base_lr * batch / schedule.reference_batch),
        ("opt_learning_rate_warmup_epochs", _warmup_epochs(config, records)),
        ("opt_weight_decay", config.optimizer.weight_decay),
        ("eval_samples", int(scores[0]["examples"])),
    ):
        yield point, 0.0, key, value, {}
    yield end, first, "init_stop", None, {}
    yield begin, first, "run_start", None, {}
    status, stopped = "aborted", scores[-1]["wall_s"]
    for record in scores:
        second, about = record["wall_s"], {"epoch_num": record["epoch"]}
        yield begin, second, "eval_start", None, about
        yield point, second, "eval_accuracy", record["top1"], about
        yield end, second, "eval_stop", None, about
        if record["top1"] >= target:
            status, stopped = "success", second
            break
    yield end, stopped, "run_stop", None, {"status": status}
