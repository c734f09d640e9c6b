"""The training loop: next batch, step, log, evaluate, save, stop."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from resnet_jax.checkpoint.stop import StopRequest
from resnet_jax.data.loaders.loader import Loader
from resnet_jax.parallel.job.agreement import ProcessFlags, all_gather_object
from resnet_jax.train.callbacks import Callbacks
from resnet_jax.train.clock import Clock
from resnet_jax.train.evaluate import Evaluation
from resnet_jax.train.nonfinite import NonfiniteError
from resnet_jax.train.profile import ProfiledSteps
from resnet_jax.train.records import Recorder
from resnet_jax.train.recovery import Recovery
from resnet_jax.train.saving import Saver
from resnet_jax.train.spec import TrainSpec
from resnet_jax.train.state import TrainState
from resnet_jax.train.watchdog import Watchdog

if TYPE_CHECKING:
    from resnet_jax.train.diagnostics.probe import Measured


def train_loop(
    state: TrainState,
    step: int,
    *,
    spec: TrainSpec,
    loader: Loader,
    run_steps: ProfiledSteps,
    measure_statistics: Callable[[TrainState, Loader], TrainState] | None,
    validate: Callable[[TrainState, int], dict[str, Evaluation]] | None,
    diagnose: Callable[[TrainState], "Sequence[Measured]"],
    recorder: Recorder,
    saver: Saver,
    recovery: Recovery,
    callbacks: Callbacks,
    clock: Clock,
    watchdog: Watchdog,
    stop: StopRequest,
    stop_at_step: int | None,
    check_workdir: Callable[[], Any],
) -> tuple[TrainState, int]:
    """Train from `step` to the last step, or until a process is asked to stop.

    Records are written before the checkpoint of their step, so a resumed run neither repeats nor
    misses a line. A state that isn't finite is neither scored, diagnosed nor saved.

    Args:
        state: the state after `step` steps; donated.
        step: steps done.
        spec: of the run.
        loader: source of the batches.
        run_steps: takes steps, and says after which of them a dispatch must end.
        measure_statistics: measures running statistics anew before an evaluation, or None.
        validate: scores a state on the validation split, or None without that split.
        diagnose: measures the inside of the network.
        recorder: writes the records.
        saver: saves checkpoints.
        recovery: decides what happens about numbers that aren't finite.
        callbacks: called at log points, after evaluations and checkpoints; may stop the run.
        clock: measures the speed of training, paused during everything else, and where time goes.
        watchdog: told what happens.
        stop: set by a signal.
        stop_at_step: stop after this step, as if by a signal.
        check_workdir: raises WriteError if the work directory isn't where it was.

    Returns:
        The last state, which is saved unless no step was taken, and its step.

    Raises:
        NumericalError: a number isn't finite, and the run can't go on.
        WriteError: the work directory can't be written any more.
    """
    intervals = spec.intervals
    if step == 0 and intervals.diagnoses_at(0):
        watchdog.now("measuring the network of step 0")
        recorder.diagnostics(0, diagnose(state))

    flags = ProcessFlags(spec.mesh)
    stopping = any(all_gather_object(stop.requested)) or _reached(step, stop_at_step)
    clock.start_lap(step)
    waited_s = 0.0  # for images, since the last log point
    while step < intervals.total_steps and not stopping:
        # Next batch.
        first, step = (
            step,
            intervals.next_action(step, stop_at_step=stop_at_step, ends=run_steps.ends),
        )
        watchdog.now(f"training steps {first + 1} to {step}")
        waited_before_s = loader.waited_s
        batches = loader.take(first)
        waited_s += loader.waited_s - waited_before_s
        clock.account.waited(loader.waited_s - waited_before_s)
        if first == 0:
            recorder.inputs(state, batches)

        # Step.
        state = run_steps(state, batches, first=first, steps=step - first)

        stopping, save_failed = flags.any_process(stop.requested, saver.has_failed())
        stopping = stopping or _reached(step, stop_at_step)
        if save_failed:
            saver.settle_or_count(step)
        check_workdir()

        last = stopping or step == intervals.total_steps
        while True:  # again after going back to a checkpoint
            try:
                if measure_statistics and intervals.evaluates_at(step):
                    watchdog.now(f"measuring the statistics of step {step}")
                    with clock.paused(state, "evaluation"):
                        state = measure_statistics(state, loader)

                # Log.
                if intervals.logs_at(step):
                    metrics = spec.fetch_metrics(state)
                    recovery.count_skipped(metrics, step)
                    recorder.training(step, metrics, waited_s=waited_s)
                    state, waited_s = state.replace(meter=spec.empty_metrics()), 0.0
                    recovery.check_metrics(metrics, step)
                    if callbacks.log(step, state):
                        stopping = last = True

                validates = validate is not None and intervals.evaluates_at(step)
                diagnoses = intervals.diagnoses_at(step)
                scheduled = validates or intervals.saves_at(step)
                saves = last or saver.is_due(step, scheduled=scheduled)
                if validates or diagnoses or saves:
                    with clock.paused(state, "evaluation"):
                        recovery.check_state(state, step)

                # Evaluate.
                scores = None
                if validate and validates:
                    with clock.paused(state, "evaluation"):
                        scores = validate(state, step)
                    recorder.evaluation(step, scores)
                    if callbacks.evaluate(step, state, scores):
                        stopping = last = saves = True
                if diagnoses:
                    watchdog.now(f"measuring the network of step {step}")
                    with clock.paused(state, "evaluation"):
                        recorder.diagnostics(step, diagnose(state))

                # Save.
                if saves:
                    with clock.paused(state, "save"):
                        saver.save(step, state, scores, last=last)
                        saved = callbacks.see_checkpoints and saver.wait_until_saved(step)
                    if saved and callbacks.checkpoint(step, state):
                        stopping = True
                break
            except NonfiniteError as found:
                watchdog.now("restoring")
                with clock.paused(state, "restore"):
                    state, last = recovery.roll_back(found, step), True
    return state, step


def _reached(step: int, stop_at_step: int | None) -> bool:
    return stop_at_step is not None and step >= stop_at_step
