"""Checks of finished runs that may be incomplete copies."""

import operator

from etils import epath

from resnet_jax.checkpoint.workdir import METRICS, SUMMARY
from resnet_jax.errors import DataError
from resnet_jax.logging.metrics_log import read_metrics
from resnet_jax.logging.summary import read_summary


def last_step(folder: epath.Path) -> int:
    """The last step of a finished run.

    Raises:
        DataError: the summary of the run is damaged, or can't be read.
    """
    with read_summary(folder) as summary:
        return operator.index(summary["steps"])


def check_finished(folder: epath.Path) -> None:
    """Check that a finished run of a single seed has the log that its summary summarizes.

    Raises:
        DataError: the summary or the log is damaged or can't be read; or the log has no training
            record, or not the test score that the summary has.
    """
    records = [
        record for record in read_metrics(folder / METRICS) if record.get("weights", "raw") == "raw"
    ]
    with read_summary(folder) as summary:
        step, test = operator.index(summary["steps"]), summary["final"]["test"]
        score = test["examples"], test["top1"]
        is_possible = test["examples"] > 0 and 0 <= test["top1"] <= 1
    if not is_possible:
        raise DataError(
            f"{folder / SUMMARY} has a test score that can't be: top-1 {score[1]} of {score[0]}"
            " images. Copy the run again."
        )
    of_test = [record for record in records if record["split"] == "test"]
    last = of_test[-1] if of_test else {}
    if (last.get("step"), last.get("examples"), last.get("top1")) != (step, *score):
        raise DataError(
            f"{folder / METRICS} has not the test score of step {step:,} that {SUMMARY} has."
            " Copy the run again."
        )
    if not any(record["split"] == "train" for record in records):
        raise DataError(f"{folder / METRICS} has no training record. Copy the run again.")
