"""The status of a run, read from the files of its directory; nothing is written."""

import dataclasses
import json
import os
from typing import Any, Literal

from etils import epath

from resnet_jax.checkpoint.lock import LOCK, LockState, lock_state
from resnet_jax.checkpoint.lock_holder import Holder
from resnet_jax.checkpoint.newest import NewestCheckpoint, age_s, newest_checkpoint
from resnet_jax.checkpoint.retention import best_fn
from resnet_jax.checkpoint.workdir import (
    CHECKPOINTS,
    CONFIG,
    METRICS,
    PROCESS,
    SUMMARY,
    no_client,
)
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.logging.display import seconds_left
from resnet_jax.logging.metrics_log import read_metrics, refuse_constant
from resnet_jax.logging.recorded_goodput import RecordedGoodput, read_goodput
from resnet_jax.utils.paths import bucket_errors, exists, read_document

State = Literal["starting", "running", "finished", "stopped", "failed", "lost", "unknown"]

_LARGEST = 1e15  # numbers beyond are damage: no step, second or process has such a number


@dataclasses.dataclass(frozen=True)
class RunStatus:
    """What a run is doing. Values that the files don't tell are None.

    Attributes:
        workdir: directory of the run.
        state: "starting" (a process holds the lock, and reads data, restores or waits for the other
            processes), "running" (that process compiles, trains, scores or saves), "finished"
            (summary.json is written), "stopped" (on request, saved), "failed", "lost" (the process
            ended without a word: killed, stuck, or its host was lost), or "unknown" (no process
            holds the lock, and an older version left no record of its process).
        reason: of a failure.
        holder: the process that holds the lock, as text.
        lock: "free"; "held"; "stale", of a process that has ended.
        lock_age_s: seconds since the lock was renewed.
        model, data: names in the config.
        step: the last step on record.
        total_steps: steps of the run.
        epoch: passes over the training split at `step`.
        img_per_s: training speed at the last log point, over all seeds.
        eta_s: seconds of training left at that speed, without evaluations; None unless it runs.
        train: the last training record.
        scores: the last record of each scored split, by split and weights.
        best: the best record on the validation split.
        checkpoint: the newest checkpoint.
        goodput: where the wall time of all starts went.
        log_age_s: seconds since metrics.jsonl was written. In a bucket it is written with each
            checkpoint.
        started: when the last process took the lock, in seconds since 1970.
        ended: when it ended.
        devices: number and kind of its devices.
        problems: files that can't be read, or are damaged, a sentence each.
    """

    workdir: str
    state: State
    reason: str
    holder: str
    lock: Literal["free", "held", "stale"]
    lock_age_s: float | None
    model: str | None
    data: str | None
    step: int
    total_steps: int | None
    epoch: float | None
    img_per_s: float | None
    eta_s: float | None
    train: dict[str, Any] | None
    scores: dict[str, dict[str, Any]]
    best: dict[str, Any] | None
    checkpoint: NewestCheckpoint | None
    goodput: RecordedGoodput | None
    log_age_s: float | None
    started: float | None
    ended: float | None
    devices: str | None
    problems: tuple[str, ...]


def read_status(workdir: epath.Path) -> RunStatus:
    """Read what the run in `workdir` is doing.

    A file that is missing, cut or damaged leaves its values out, and is named in `problems`. Ages
    compare the clocks of two hosts if the files are written on another host.

    Raises:
        ConfigError: the folder isn't the directory of a run, or can't be read.
    """
    problems: list[str] = []
    lock = _read_lock(workdir, problems)
    documents = {
        name: _read_object(workdir / name, problems) for name in (CONFIG, SUMMARY, PROCESS)
    }
    if lock is None and not any(exists(workdir / name) for name in documents):
        raise ConfigError(
            f"{workdir} isn't the directory of a run: it has no {CONFIG}, {SUMMARY} or {LOCK}."
        )
    config, summary, process = documents.values()
    if not config and isinstance(summary.get("config"), dict):
        config = summary["config"]
    records = _read_records(workdir, problems)
    train = next((r for r in reversed(records) if r["split"] == "train"), None)
    scores = {
        f"{r['split']}_{r['weights']}".removesuffix("_raw"): r for r in records if "weights" in r
    }
    validated = [r for r in records if (r["split"], r.get("weights")) == ("validation", "raw")]
    total = _number(summary, "steps") or _number(process, "steps")
    state = _state(lock, summary, process, has_records=bool(records))
    left_s = seconds_left(train, round(total)) if train and total else None
    last = max(records, key=lambda r: r["step"], default=None)  # scores of the best come last
    return RunStatus(
        workdir=os.fspath(workdir),
        state=state,
        reason=(_text(process, "error") or "") if state == "failed" else "",
        holder=str(lock.holder) if lock else "",
        lock="free" if lock is None else "held" if lock.is_alive else "stale",
        lock_age_s=lock.age_s if lock else None,
        model=_text(config.get("model"), "name"),
        data=_text(config.get("data"), "name"),
        step=last["step"] if last else 0,
        total_steps=None if total is None else round(total),
        epoch=last["epoch"] if last else None,
        img_per_s=train["img_per_s"] if train else None,
        eta_s=left_s if state == "running" else None,
        train=train,
        scores=scores,
        best=max(validated, key=best_fn) if validated else None,
        checkpoint=_read_checkpoints(workdir, problems),
        goodput=_read_goodput(workdir, problems),
        log_age_s=age_s(workdir / METRICS),
        started=_number(process, "started"),
        ended=_number(process, "ended"),
        devices=_text(process, "devices"),
        problems=tuple(problems),
    )


def _state(
    lock: LockState | None,
    summary: dict[str, Any],
    process: dict[str, Any],
    *,
    has_records: bool,
) -> State:
    if summary:
        return "finished"
    if lock and lock.is_alive:
        if not process:  # older versions recorded no process
            return "running" if has_records else "starting"
        trains = _number(process, "start_step") is not None and process.get("ended") is None
        return "running" if trains and _is_of(process, lock.holder) else "starting"
    if not process:
        return "unknown"
    if process.get("ended") is None:
        return "lost"
    return "failed" if process.get("error") else "stopped"


def _is_of(process: dict[str, Any], holder: Holder) -> bool:
    """Whether process.json is of the process that holds the lock."""
    if token := _text(process, "token"):
        return token == holder.token
    # Older versions recorded no token.
    return (_text(process, "host"), _number(process, "pid")) == (holder.host, holder.pid)


def _read_lock(workdir: epath.Path, problems: list[str]) -> LockState | None:
    try:
        return lock_state(workdir)
    except ImportError:
        raise ConfigError(no_client(workdir)) from None
    except NotADirectoryError:
        return None
    except OSError as error:
        problems.append(f"{LOCK} can't be read ({error.strerror or error}).")
        return None


def _read_object(path: epath.Path, problems: list[str]) -> dict[str, Any]:
    """The JSON object in a file; {} if the file is missing, can't be read or is damaged."""
    try:
        document = json.loads(read_document(path), parse_constant=refuse_constant)
        if not isinstance(document, dict):
            raise ValueError("no JSON object")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        problems.append(f"{path.name} can't be read ({error.strerror or error}).")
    except (ValueError, RecursionError):
        problems.append(f"{path.name} is damaged: it isn't JSON of this package.")
    else:
        return document
    return {}


def _read_records(workdir: epath.Path, problems: list[str]) -> list[dict[str, Any]]:
    try:
        return read_metrics(workdir / METRICS)
    except DataError as error:
        problems.append(str(error))
        return []


def _read_goodput(workdir: epath.Path, problems: list[str]) -> RecordedGoodput | None:
    try:
        return read_goodput(workdir)
    except DataError as error:
        problems.append(str(error))
        return None


def _read_checkpoints(workdir: epath.Path, problems: list[str]) -> NewestCheckpoint | None:
    folder = workdir / CHECKPOINTS
    try:
        newest = newest_checkpoint(workdir)
        with bucket_errors(folder):
            corrupt = sorted(path.name for path in folder.glob("*.corrupt"))
    except OSError as error:
        problems.append(f"{CHECKPOINTS} can't be read ({error.strerror or error}).")
        return None
    if corrupt:
        problems.append(f"{CHECKPOINTS} has corrupt ones, set aside: {', '.join(corrupt)}.")
    return newest


def _number(document: dict[str, Any], name: str) -> float | None:
    value = document.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if 0 <= value < _LARGEST else None


def _text(document: Any, name: str) -> str | None:
    value = document.get(name) if isinstance(document, dict) else None
    return value if isinstance(value, str) else None
