"""The end of a run: final scores, and summary.json."""

import logging
from typing import Any

from etils import epath

from resnet_jax.checkpoint.workdir import METRICS
from resnet_jax.errors import DataError
from resnet_jax.logging.console import TrainingConsole
from resnet_jax.logging.metrics_log import read_metrics
from resnet_jax.logging.summary import read_summary
from resnet_jax.parallel.job.agreement import wait_for_all
from resnet_jax.train.evaluate import Evaluation
from resnet_jax.train.nonfinite import NonfiniteError
from resnet_jax.train.opening import OpenRun
from resnet_jax.train.records import Recorder, recorded_scores
from resnet_jax.train.recovery import Recovery
from resnet_jax.train.saving import Saver
from resnet_jax.train.scoring import Scorer
from resnet_jax.train.state import TrainState

_log = logging.getLogger(__name__)


def finish_run(
    state: TrainState,
    step: int,
    *,
    run: OpenRun,
    scorer: Scorer,
    saver: Saver,
    recovery: Recovery,
    recorder: Recorder,
) -> dict[str, Evaluation]:
    """Score the last state and the best checkpoint, and write summary.json.

    Args:
        state: the last state.
        step: its step.
        run, scorer, saver, recovery, recorder: parts of the run.

    Returns:
        Scores by name, as in `FitResult.evaluation`.

    Raises:
        NumericalError: a score isn't finite.
        WriteError: the last checkpoint or the records can't be written.
    """
    best = saver.best
    evaluation: dict[str, Evaluation] = {}
    try:
        for split in scorer.splits:
            evaluation |= scorer(split, state, step)
        if best and "test" in scorer.splits:
            run.watchdog.now("restoring the best checkpoint")
            selected, _ = run.checkpoints.restore(best["step"], run.experiment.spec.abstract_state)
            selected = selected.replace(ema=None)  # of the best step no averages are scored
            evaluation["test_best"] = scorer("test", selected, best["step"])["test"]
    except NonfiniteError as found:
        raise recovery.error(found) from None
    except DataError as error:  # the last state is saved and scored
        _log.warning("The best checkpoint can't be scored on the test split: %s", error)
    for name, scored in evaluation.items():
        if name.startswith("test"):  # the loop has scored the validation split at this step
            scored_at = best["step"] if best and name == "test_best" else step
            recorder.evaluation(scored_at, {name: scored}, show=False)
    run.watchdog.now("finishing the last checkpoint")
    run.checkpoints.close()
    recorder.summary(run.experiment.dataset, saver.facts, evaluation=evaluation, best=best)
    wait_for_all("the run is on record")
    return evaluation


def show_finished(
    workdir: epath.Path, console: TrainingConsole
) -> tuple[list[dict[str, Any]], dict[str, Evaluation]]:
    """Show the summary of a run that had finished before; nothing is scored again.

    Returns:
        The records of the run, and the scores without confusion matrices.

    Raises:
        DataError: summary.json or metrics.jsonl is damaged.
    """
    with read_summary(workdir) as summary:
        evaluation = recorded_scores(summary)
        console.closing(summary, workdir)
    return read_metrics(workdir / METRICS), evaluation
