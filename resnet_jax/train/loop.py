"""A whole run, from a config to a directory of results."""

import contextlib
import dataclasses
import json
import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath

from resnet_jax.checkpoint.checkpointer import Checkpointer, merit
from resnet_jax.checkpoint.lock import locked
from resnet_jax.checkpoint.shared import check_shared
from resnet_jax.checkpoint.stop import StopRequest
from resnet_jax.checkpoint.workdir import (
    CHECKPOINTS,
    CONFIG,
    METRICS,
    SUMMARY,
    check_config,
    prepare_workdir,
    write_atomically,
)
from resnet_jax.data.sources import Dataset
from resnet_jax.errors import DataError, NumericalError, UsageError, WriteError
from resnet_jax.parallel.mesh import place, replicated
from resnet_jax.parallel.process import (
    MAIN,
    Vote,
    exchange,
    failing_together,
    is_main,
    wait_for_all,
)
from resnet_jax.train.clock import Clock
from resnet_jax.train.common import common_ground
from resnet_jax.train.config import describe_differences, to_json, validate
from resnet_jax.train.console import TrainingConsole
from resnet_jax.train.evaluate import Evaluation, Evaluator
from resnet_jax.train.experiment import Experiment
from resnet_jax.train.metrics_log import MetricsLog, read_metrics
from resnet_jax.train.report import draw_curves, run_summary, write_summary
from resnet_jax.train.state import Meter, TrainState
from resnet_jax.train.watchdog import Watchdog

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What `fit` returns.

    Attributes:
        state: the last state.
        history: the records of metrics.jsonl, one dict per log point.
        evaluation: final scores by name: "validation", "test", with moving averages also
            "validation_ema" and "test_ema", and "test_best", the test split under the best
            checkpoint if that is intact. Empty if the run stopped early.
        best: {"step", "top1", "loss"} on the validation split, or None without one.
        stopped_early: the run was asked to stop; all is saved, and `fit` goes on from here.
    """

    state: TrainState
    history: list[dict[str, Any]]
    evaluation: dict[str, Evaluation]
    best: dict[str, Any] | None
    stopped_early: bool


def fit(
    config: ml_collections.ConfigDict,
    workdir: epath.PathLike,
    *,
    stop_at_step: int | None = None,
    stop: StopRequest | None = None,
    on_hang: Callable[[str], None] | None = None,
) -> FitResult:
    """Train the model of `config`, or go on where the run in `workdir` was stopped.

    Args:
        config: made by a file in configs/ or by `default_config`.
        workdir: directory of the run, created if need be; it is bound to this config. Several
            processes must share it. It may be in a bucket: gs://… or s3://….
        stop_at_step: save and return after this step, as if a signal had asked for it.
        stop: a request that the caller has entered already; by default `fit` listens for signals
            itself while it trains.
        on_hang: called in another thread with a sentence when nothing has happened for
            `config.hang_timeout_s`, after the stacks of all threads were printed; it may end the
            process, which nothing else can. By default the run goes on waiting.

    Raises:
        UsageError: `stop_at_step` is less than 1.
        ConfigError: an impossible config, or not the one that the run in `workdir` began with, or
            not that of the other processes.
        PeerError: another process has failed before the first step.
        DataError: data or checkpoints are missing or damaged, or data have changed.
        WriteError: `workdir` can't be written.
        NumericalError: something stopped being finite; nothing of that was saved.
    """
    if stop_at_step is not None and stop_at_step < 1:
        raise UsageError(f"stop_at_step is {stop_at_step}; it must be at least 1.")
    workdir = epath.Path(workdir)
    with contextlib.ExitStack() as held:
        return _fit(config, workdir, held, stop=stop, stop_at_step=stop_at_step, on_hang=on_hang)


def _fit(
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
    held: contextlib.ExitStack,
    *,
    stop: StopRequest | None,
    stop_at_step: int | None,
    on_hang: Callable[[str], None] | None,
) -> FitResult:
    """Check all that can be checked before anything is compiled, and run."""
    with failing_together(common_ground(config, stop_at_step=stop_at_step)) as common:
        validate(config)
        prepare_workdir(workdir)
        if is_main():
            held.enter_context(locked(workdir))
        new = check_config(workdir, to_json(config), describe_differences)
        experiment = Experiment.make(config)
        common["the data's fingerprint"] = experiment.dataset.fingerprint
    check_shared(workdir)
    try:
        if new and is_main():
            write_atomically(workdir / CONFIG, to_json(config))
        checkpoints = Checkpointer(workdir / CHECKPOINTS, keep=config.keep_checkpoints)
        watchdog = Watchdog(config.hang_timeout_s, on_hang)
        held.enter_context(watchdog.watching())
        with contextlib.nullcontext(stop) if stop else StopRequest() as request:
            try:
                return _run(
                    experiment, workdir, checkpoints, request, watchdog, stop_at_step=stop_at_step
                )
            except BaseException:
                checkpoints.finish_writing()
                raise
    except OSError as error:
        raise WriteError(f"{workdir} can't be written: {error.strerror or error}.") from error


def _run(
    experiment: Experiment,
    workdir: epath.Path,
    checkpoints: Checkpointer,
    stop: StopRequest,
    watchdog: Watchdog,
    *,
    stop_at_step: int | None,
) -> FitResult:
    config, plan, dataset = experiment.config, experiment.plan, experiment.dataset
    clock = Clock()
    step, best = 0, None
    watchdog.now("restoring")
    if restored := checkpoints.restore_newest(experiment.abstract_state()):
        step, state, progress = restored
        _check_same_data(progress, dataset, workdir)
        best, clock.earlier_s = progress["best"], progress["wall_s"]
    else:
        state = experiment.initial_state()

    evaluators = experiment.evaluators()
    if step >= plan.total_steps and exchange((workdir / SUMMARY).exists())[MAIN]:
        # Finished and on record: what was measured then is left as it is.
        evaluation = _final_scores(evaluators, experiment, state, step, best, checkpoints)
        with TrainingConsole(total_steps=plan.total_steps, start_step=step) as console:
            console.opening(experiment, workdir)
            console.closing(json.loads((workdir / SUMMARY).read_text()), workdir)
        history = read_metrics(workdir / METRICS)
        return FitResult(state, history, evaluation, best, stopped_early=False)

    batches = experiment.batches()
    empty_meter = jax.device_get(Meter.zero())
    with (
        MetricsLog(workdir, start_step=step) as log,
        TrainingConsole(total_steps=plan.total_steps, start_step=step) as console,
    ):
        console.opening(experiment, workdir)
        watchdog.now("compiling the training step")
        train_steps = experiment.train_steps().lower(state, *batches.take(step), 1).compile()
        clock.start_lap(step)
        vote, stopping = Vote(experiment.mesh), False
        while step < plan.total_steps and not stopping:
            first, step = step, plan.next_pause(step, stop_at_step=stop_at_step)
            watchdog.now(f"training steps {first + 1} to {step}")
            state = train_steps(state, *batches.take(first), np.int32(step - first))
            stopping = vote.cast(stop.requested) or (
                stop_at_step is not None and step >= stop_at_step
            )

            # At a pause the order is: log, score, save. A checkpoint's step is on record before
            # the checkpoint exists, so a resumed run neither repeats nor misses a line.
            if plan.logs_at(step):
                record = _training_record(experiment, state.meter, step, checkpoints)
                record["img_per_s"] = round(clock.lap(step, plan.batch_size), 1)
                log.write(record)
                console.train(record)
                meter = place(empty_meter, replicated(experiment.mesh))
                state = state.replace(meter=meter)
            scores = None
            if plan.evaluates_at(step) and "validation" in evaluators:
                with clock.paused(state):
                    watchdog.now(f"scoring step {step}")
                    scores = _score(evaluators, "validation", state, step)
                for name, scored in scores.items():
                    record = _score_record(experiment, name, scored, step)
                    log.write(record)
                    console.evaluation(record)
                if best is None or merit(vars(scores["validation"])) >= merit(best):
                    best = {"step": step, **scores["validation"].scalars()}
            if scores or stopping or plan.saves_at(step):
                with clock.paused(state):
                    watchdog.now(f"saving step {step}")
                    _check_finite(state, step, checkpoints)
                    log.sync()
                    checkpoints.save(
                        step,
                        state,
                        progress={
                            "best": best,
                            "wall_s": clock.wall_s(),
                            "class_names": dataset.class_names,
                            "image_shape": dataset.image_shape,
                            "fingerprint": dataset.fingerprint,
                        },
                        metrics=scores["validation"].scalars() if scores else None,
                    )

        if step < plan.total_steps:
            watchdog.now("finishing the last checkpoint")
            checkpoints.close()
            console.stopped(step, workdir)
            return FitResult(state, log.history, {}, best, stopped_early=True)

        watchdog.now("scoring the last step and the best")
        evaluation = _final_scores(evaluators, experiment, state, step, best, checkpoints)
        watchdog.now("finishing the last checkpoint")
        for name, scored in evaluation.items():
            if name.startswith("test"):  # the validation split was scored at this step already
                scored_at = best["step"] if best and name == "test_best" else step
                log.write(_score_record(experiment, name, scored, scored_at))
        checkpoints.close()
        summary = run_summary(
            experiment,
            evaluation=evaluation,
            best=best,
            history=log.history,
            wall_s=clock.wall_s(),
        )
        if is_main():
            draw_curves(workdir, log.history, title=f"{config.model.name} on {config.data.name}")
            write_summary(workdir, summary)
        console.closing(summary, workdir)
    wait_for_all("the run is on record")
    return FitResult(state, log.history, evaluation, best, stopped_early=False)


def _check_same_data(progress: dict[str, Any], dataset: Dataset, workdir: epath.Path) -> None:
    if progress["fingerprint"] != dataset.fingerprint:
        raise DataError(
            f"The images or labels of {dataset.name}, or their order, aren't those that the run in"
            f" {workdir} began with (fingerprint {dataset.fingerprint}, was"
            f" {progress['fingerprint']}). Nothing was touched; point data.dir at the old data."
        )


def _training_record(
    experiment: Experiment, meter: Meter, step: int, checkpoints: Checkpointer
) -> dict[str, Any]:
    """Means over the examples since the last log point; fetches the meter."""
    sums = jax.device_get(meter)
    if not math.isfinite(sums.loss) or not math.isfinite(sums.grad_norm):
        what = "gradient" if math.isfinite(sums.loss) else "loss"
        raise _not_finite(f"The {what}", step, checkpoints)
    return {
        "step": step,
        "epoch": round(experiment.plan.epoch(step), 4),
        "examples": step * experiment.plan.batch_size,
        "split": "train",
        "loss": float(sums.loss / sums.examples),
        "top1": float(sums.top1 / sums.examples),
        "grad_norm": float(sums.grad_norm / sums.steps),
        "lr": float(experiment.schedule(step - 1)),
    }


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _check_finite(state: TrainState, step: int, checkpoints: Checkpointer) -> None:
    """Refuse to save a state that can't be trained on."""
    if not _all_finite((state.params, state.batch_stats, state.ema, state.meter)):
        raise _not_finite("A parameter, statistic or loss", step, checkpoints)


def _not_finite(what: str, step: int, checkpoints: Checkpointer) -> NumericalError:
    checkpoints.close()  # a save under way is of an earlier step, and good
    saved = checkpoints.steps()
    safe = f"The checkpoint of step {saved[-1]} is from before" if saved else "Nothing was saved"
    return NumericalError(
        f"{what} stopped being finite at or shortly before step {step}. {safe}; a lower"
        " schedule.base_lr, a schedule.warmup or optimizer.clip_norm usually helps."
    )


def _score(
    evaluators: dict[str, Evaluator], split: str, state: TrainState, step: int
) -> dict[str, Evaluation]:
    """Score the raw variables and, as `{split}_ema`, their moving averages."""
    scores = {split: evaluators[split](state.variables(), state.normalization)}
    if state.ema is not None:
        scores[f"{split}_ema"] = evaluators[split](state.variables(ema=True), state.normalization)
    for name, scored in scores.items():
        if not math.isfinite(scored.loss):
            raise NumericalError(
                f"The loss on {name} isn't finite after step {step}: the logits overflow. A lower"
                " schedule.base_lr or a schedule.warmup usually helps."
            )
    return scores


def _final_scores(
    evaluators: dict[str, Evaluator],
    experiment: Experiment,
    state: TrainState,
    step: int,
    best: dict[str, Any] | None,
    checkpoints: Checkpointer,
) -> dict[str, Evaluation]:
    """Score the last state on every held-out split, and the selected one on the test split."""
    scores: dict[str, Evaluation] = {}
    for split in evaluators:
        scores |= _score(evaluators, split, state, step)
    if best and "test" in evaluators:
        try:
            selected, _ = checkpoints.restore(best["step"], experiment.abstract_state())
        except DataError as error:  # the last state is safe, and has its scores
            _log.warning("The best checkpoint can't be scored on the test split: %s", error)
        else:
            scores["test_best"] = _score(evaluators, "test", selected, best["step"])["test"]
    return scores


def _score_record(
    experiment: Experiment, name: str, scored: Evaluation, step: int
) -> dict[str, Any]:
    """A line of metrics.jsonl; `name` is that of a split, with the kind of weights after a "_"."""
    split, _, weights = name.partition("_")
    return {
        "step": step,
        "epoch": round(experiment.plan.epoch(step), 4),
        "split": split,
        "weights": weights or "raw",
        **scored.scalars(),
    }
