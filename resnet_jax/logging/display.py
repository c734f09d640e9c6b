"""Numbers of a run as people read them: accuracies, durations, the time left."""

import math
from collections.abc import Mapping
from typing import Any


def percent_text(scores: Mapping[str, Any]) -> str:
    """The top-1 accuracy in percent; with several seeds mean and standard deviation."""
    spread = f" ± {100 * scores['std']['top1']:.2f}" if "std" in scores else ""
    return f"{100 * scores['top1']:.2f}{spread} %"


def clock_text(seconds: float) -> str:
    """A duration such as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def age_text(seconds: float) -> str:
    """How long ago something was, such as "12 s ago" or "3.5 h ago"."""
    for unit, length_s, limit in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if seconds < limit * length_s:
            digits = 1 if unit == "h" else 0
            return f"{seconds / length_s:.{digits}f} {unit} ago"
    return f"{seconds / 86_400:.1f} days ago"


def seconds_left(record: Mapping[str, Any], total_steps: int) -> float | None:
    """Seconds of training from a log point to the last step, at the speed of the log point.

    Args:
        record: a training record of metrics.jsonl.
        total_steps: steps of the run.

    Returns:
        None if the record has no speed, or is of an older version, without "examples".
    """
    if "examples" not in record or not record["step"] or not record["img_per_s"]:
        return None
    seeds = len(record["seeds"]["loss"]) if "seeds" in record else 1
    images_per_step = seeds * float(record["examples"]) / record["step"]  # of all seeds together
    left_s = max(0, total_steps - record["step"]) * images_per_step / record["img_per_s"]
    return left_s if math.isfinite(left_s) else None
