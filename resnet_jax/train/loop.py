"""A whole run, from a config to a directory of results."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import ml_collections

from resnet_jax.checkpoint.checkpointer import Checkpointer, merit
from resnet_jax.checkpoint.stop import StopRequest
from resnet_jax.checkpoint.workdir import CHECKPOINTS, bind_config, prepare_workdir
from resnet_jax.errors import NumericalError
from resnet_jax.parallel.mesh import replicated
from resnet_jax.train.clock import Clock
from resnet_jax.train.config import describe_differences, to_json
from resnet_jax.train.console import TrainingConsole
from resnet_jax.train.evaluate import Evaluation
from resnet_jax.train.experiment import Experiment
from resnet_jax.train.metrics_log import MetricsLog
from resnet_jax.train.report import draw_curves, run_summary, write_summary
from resnet_jax.train.state import Meter, TrainState


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What `fit` returns.

    Attributes:
        state: the last state.
        history: the records of metrics.jsonl, one dict per log point.
        evaluation: final scores by name: "validation", "test", with moving averages also
            "validation_ema" and "test_ema", and "test_best", the test split under the best
            checkpoint. Empty if the run stopped early.
        best: {"step", "top1", "loss"} on the validation split, or None without one.
        stopped_early: the run was asked to stop; all is saved, and `fit` goes on from here.
    """

    state: TrainState
    history: list[dict[str, Any]]
    evaluation: dict[str, Evaluation]
    best: dict[str, Any] | None
    stopped_early: bool


def fit(
    config: ml_collections.ConfigDict, workdir: str | Path, *, stop_at_step: int | None = None
) -> FitResult:
    """Train the model of `config`, or go on where the run in `workdir` was stopped.

    Args:
        config: made by a file in configs/ or by `default_config`.
        workdir: directory of the run, created if need be; it is bound to this config.
        stop_at_step: save and return after this step, as if a signal had asked for it.

    Raises:
        ConfigError: an impossible config, or not the one that the run in `workdir` began with.
        DataError: data or checkpoints are missing or damaged.
        WriteError: `workdir` can't be written.
        NumericalError: the loss or a gradient stopped being finite; nothing of that was saved.
    """
    workdir = Path(workdir)
    prepare_workdir(workdir)
    experiment = Experiment.make(config)
    bind_config(workdir, to_json(config), describe_differences)
    plan = experiment.plan

    step, best, earlier_s = 0, None, 0.0
    state = experiment.initial_state()
    checkpoints = Checkpointer(workdir / CHECKPOINTS, keep=config.keep_checkpoints)
    if checkpoints.steps():
        step = checkpoints.steps()[-1]
        state, progress = checkpoints.restore(step, state)
        best, earlier_s = progress["best"], progress["wall_s"]

    train_steps = experiment.train_steps()
    images, labels = experiment.training_data()
    stream = experiment.example_stream()
    empty_meter = jax.device_get(Meter.zero())
    with (
        MetricsLog(workdir, start_step=step) as log,
        TrainingConsole(total_steps=plan.total_steps, start_step=step) as console,
        StopRequest() as stop,
    ):
        console.opening(experiment, workdir)
        clock = Clock(step=step, earlier_s=earlier_s)
        stopping = step == stop_at_step
        while step < plan.total_steps and not stopping:
            first, step = step, plan.next_pause(step, stop_at_step=stop_at_step)
            ids, epochs = stream.take(first, plan.steps_per_dispatch)
            state = train_steps(state, images, labels, ids, epochs, step - first)
            stopping = stop.requested or step == stop_at_step

            # At a pause the order is: log, score, save. A checkpoint's step is on record before
            # the checkpoint exists, so a resumed run neither repeats nor misses a line.
            if plan.logs_at(step):
                record = _training_record(experiment, state.meter, step, checkpoints)
                record["img_per_s"] = round(clock.lap(step, plan.batch_size), 1)
                log.write(record)
                console.train(record)
                meter = jax.device_put(empty_meter, replicated(experiment.mesh))
                state = state.replace(meter=meter)
            scores = None
            if plan.evaluates_at(step) and "validation" in experiment.dataset.splits:
                with clock.paused(state):
                    scores = _score(experiment, "validation", state)
                for record in _score_records(experiment, scores, step):
                    log.write(record)
                    console.evaluation(record)
                if best is None or merit(vars(scores["validation"])) >= merit(best):
                    best = {"step": step, **scores["validation"].scalars()}
            if scores or stopping or plan.saves_at(step):
                with clock.paused(state):
                    _check_finite(state.meter, step, checkpoints)
                    checkpoints.save(
                        step,
                        state,
                        progress={
                            "best": best,
                            "wall_s": clock.wall_s(),
                            "class_names": experiment.dataset.class_names,
                            "image_shape": experiment.dataset.image_shape,
                        },
                        metrics=scores["validation"].scalars() if scores else None,
                    )

        if step < plan.total_steps:
            checkpoints.close()
            console.stopped(step, workdir)
            return FitResult(state, log.history, {}, best, stopped_early=True)

        evaluation = _final_scores(experiment, state, best, checkpoints)
        checkpoints.close()
        for record in _score_records(experiment, evaluation, step):
            if record["split"] == "test":
                log.write(record)
        summary = run_summary(experiment, evaluation, best, log.history, wall_s=clock.wall_s())
        draw_curves(workdir, log.history, title=f"{config.model.name} on {config.data.name}")
        write_summary(workdir, summary)
        console.closing(summary, workdir)
    return FitResult(state, log.history, evaluation, best, stopped_early=False)


def _training_record(
    experiment: Experiment, meter: Meter, step: int, checkpoints: Checkpointer
) -> dict[str, Any]:
    """Means over the examples since the last log point; fetches the meter."""
    _check_finite(meter, step, checkpoints)
    sums = jax.device_get(meter)
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


def _check_finite(meter: Meter, step: int, checkpoints: Checkpointer) -> None:
    loss, grad_norm = jax.device_get((meter.loss, meter.grad_norm))
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    what = "gradient" if math.isfinite(loss) else "loss"
    saved = checkpoints.steps()
    safe = f"The checkpoint of step {saved[-1]} is from before" if saved else "Nothing was saved"
    raise NumericalError(
        f"The {what} stopped being finite at or shortly before step {step}. {safe}; a lower"
        " schedule.base_lr, a schedule.warmup or optimizer.clip_norm usually helps."
    )


def _score(experiment: Experiment, split: str, state: TrainState) -> dict[str, Evaluation]:
    """Score the raw variables and, as `{split}_ema`, their moving averages."""
    evaluator = experiment.evaluator(split)
    scores = {split: evaluator(state.variables(), state.normalization)}
    if state.ema is not None:
        scores[f"{split}_ema"] = evaluator(state.variables(ema=True), state.normalization)
    return scores


def _final_scores(
    experiment: Experiment,
    state: TrainState,
    best: dict[str, Any] | None,
    checkpoints: Checkpointer,
) -> dict[str, Evaluation]:
    """Score the last state on every held-out split, and the best checkpoint on the test split."""
    scores: dict[str, Evaluation] = {}
    for split in experiment.dataset.splits:
        if split != "train":
            scores |= _score(experiment, split, state)
    if best and "test" in scores:
        best_state, _ = checkpoints.restore(best["step"], state)
        scores["test_best"] = _score(experiment, "test", best_state)["test"]
    return scores


def _score_records(
    experiment: Experiment, scores: dict[str, Evaluation], step: int
) -> list[dict[str, Any]]:
    records = []
    for name, scored in scores.items():
        split, _, weights = name.partition("_")
        records.append(
            {
                "step": step,
                "epoch": round(experiment.plan.epoch(step), 4),
                "split": split,
                "weights": weights or "raw",
                **scored.scalars(),
            }
        )
    return records
