"""The training loop, driven with plain objects: no process, no compilation, no files."""

import time
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from resnet_jax.config.schema import default_config
from resnet_jax.errors import NumericalError
from resnet_jax.parallel.mesh import make_mesh
from resnet_jax.train import clock as clock_module
from resnet_jax.train.clock import Clock
from resnet_jax.train.loop import train_loop
from resnet_jax.train.metrics import TrainMetrics
from resnet_jax.train.nonfinite import NonfiniteError
from resnet_jax.train.spec import TrainSpec
from resnet_jax.train.state import TrainState

BATCH = 32


class Run:
    """The parts of a run; each notes what it is asked to do in `done`."""

    def __init__(self, **fields):
        config = default_config()
        config.batch_size, config.duration_unit, config.duration = BATCH, "examples", 6.0 * BATCH
        config.log_every, config.steps_per_dispatch = 2, 4
        config.eval_every = config.checkpoint_every = 3.0 * BATCH
        config.update(fields)
        self.spec = TrainSpec.make(
            config, mesh=make_mesh(data=1), image_shape=(8, 8, 1), num_classes=10, train_examples=64
        )
        self.done, self.waited_s, self.waits = [], 0.0, []
        self.stop = SimpleNamespace(requested=False)
        self.failed, self.not_finite, self.not_due = False, {}, ()
        self.hooks, self.asks, self.unsaved = (), (), ()

    # What the loop is given.
    def take(self, step):
        self.waited_s += 1.0
        return f"batches of {step}"

    ends = ()  # steps after which a dispatch must end

    def __call__(self, state, batches, *, first, steps):
        assert batches == f"batches of {first}"
        self.done.append(f"steps {first + 1}-{first + steps}")
        return state.replace(step=state.step + steps)

    def measure(self, state, loader):
        self.take(0)
        self.done.append("measure statistics")
        return state

    def validate(self, state, step):
        assert int(state.step) == step
        self.done.append(f"validate {step}")
        return {"validation": "scores"}

    def train(self, state=None, step=0, **arguments):
        state = state or _state(step)
        return train_loop(
            state,
            step,
            **{
                "spec": self.spec,
                "loader": self,
                "run_steps": self,
                "measure_statistics": None,
                "validate": self.validate,
                "diagnose": lambda state: f"measured {int(state.step)}",
                "recorder": Recorder(self),
                "saver": Saver(self),
                "recovery": Recovery(self),
                "callbacks": Callbacks(self),
                "clock": Clock(),
                "watchdog": SimpleNamespace(now=lambda doing: None),
                "stop": self.stop,
                "stop_at_step": None,
                "check_workdir": lambda: None,
            }
            | arguments,
        )


class Callbacks:
    """Callbacks that stop the run where `asks` says, and whose hooks are in `hooks`."""

    def __init__(self, run):
        self.run = run

    @property
    def see_checkpoints(self):
        return "checkpoint" in self.run.hooks

    def _call(self, hook, step):
        if hook in self.run.hooks:
            self.run.done.append(f"{hook} hook {step}")
        return (hook, step) in self.run.asks

    def log(self, step, state):
        return self._call("log", step)

    def evaluate(self, step, state, scores):
        assert scores == {"validation": "scores"}
        return self._call("evaluate", step)

    def checkpoint(self, step, state):
        return self._call("checkpoint", step)


class Recorder:
    def __init__(self, run):
        self.run = run

    def inputs(self, state, batches):
        assert (int(state.step), batches) == (0, "batches of 0")

    def training(self, step, metrics, *, waited_s):
        self.run.done.append(f"log {step}")
        self.run.waits.append(waited_s)

    def evaluation(self, step, scores):
        self.run.done.append(f"record scores {step}")

    def diagnostics(self, step, measured):
        assert measured == f"measured {step}"
        self.run.done.append(f"diagnose {step}")


class Saver:
    def __init__(self, run):
        self.run = run

    def is_due(self, step, *, scheduled):
        return scheduled and step not in self.run.not_due

    def has_failed(self):
        return self.run.failed

    def settle_or_count(self, step):
        self.run.done.append(f"hear of the failure {step}")
        self.run.failed = False

    def wait_until_saved(self, step):
        self.run.done.append(f"saved {step}")
        return step not in self.run.unsaved

    def save(self, step, state, scores, *, last):
        with_scores = " with scores" if scores else ""
        self.run.done.append(f"save {step}{with_scores}{', last' * last}")


class Recovery:
    def __init__(self, run):
        self.run = run

    def count_skipped(self, metrics, step):
        pass

    def _check(self, where, step):
        if self.run.not_finite.get(where, 0) == step:
            raise NonfiniteError(where, step, [])

    def check_metrics(self, metrics, step):
        self._check("metrics", step)

    def check_state(self, state, step):
        self._check("state", step)

    def roll_back(self, found, step):
        self.run.done.append(f"roll back {step}")
        if self.run.spec.config.nonfinite.policy == "abort":
            raise NumericalError(str(found))
        self.run.not_finite.clear()
        return _state(step)


def _state(step):
    empty = {"params": {}, "batch_stats": {}, "opt_state": (), "ema": None, "normalization": {}}
    return TrainState(step=jnp.int32(step), key=jnp.zeros(2), meter=TrainMetrics.zero(), **empty)


def test_scores_are_recorded_before_their_checkpoint_is_saved():
    run = Run()
    state, step = run.train()
    assert (int(state.step), step) == (6, 6)
    assert run.done == [
        "steps 1-2", "log 2",
        "steps 3-3", "validate 3", "record scores 3", "save 3 with scores",
        "steps 4-4", "log 4",
        "steps 5-6", "log 6", "validate 6", "record scores 6", "save 6 with scores, last",
    ]  # fmt: skip


def test_what_a_run_without_validation_and_with_diagnostics_does():
    run = Run()
    run.spec.intervals.__dict__["diagnose_every"] = 4 * BATCH
    run.train(validate=None)
    assert run.done == [
        "diagnose 0",
        "steps 1-2", "log 2", "steps 3-3", "save 3", "steps 4-4", "log 4", "diagnose 4",
        "steps 5-6", "log 6", "diagnose 6", "save 6, last",
    ]  # fmt: skip


def test_statistics_are_measured_before_the_log_and_training_did_not_wait_for_their_images():
    run = Run()
    run.train(measure_statistics=run.measure, validate=None)
    assert run.done[:5] == ["steps 1-2", "log 2", "steps 3-3", "measure statistics", "save 3"]
    assert run.waits == [1.0, 2.0, 1.0]


@pytest.mark.parametrize("how", ["signal", "step", "before"])
def test_a_run_that_is_told_to_stop_saves_where_it_is(how):
    run = Run()
    if how == "before":
        run.stop.requested = True
        assert run.train(step=3)[1] == 3
        assert run.done == []
        return
    if how == "signal":
        take = run.take

        def signal(step):
            run.stop.requested = step == 3
            return take(step)

        run.take = signal
    state, step = run.train(stop_at_step=4 if how == "step" else None)
    assert (int(state.step), step) == (4, 4)
    assert run.done[-3:] == ["steps 4-4", "log 4", "save 4, last"]


@pytest.mark.parametrize(
    ("hook", "step", "end"),
    [
        ("log", 2, ["steps 1-2", "log 2", "log hook 2", "save 2, last"]),
        ("evaluate", 3, ["evaluate hook 3", "save 3 with scores, last"]),
        ("checkpoint", 3, ["save 3 with scores", "saved 3", "checkpoint hook 3"]),
    ],
)
def test_a_callback_that_stops_the_run_stops_it_at_this_step_which_is_saved(hook, step, end):
    run = Run()
    run.hooks, run.asks = (hook,), ((hook, step),)
    assert run.train()[1] == step
    assert run.done[-len(end) :] == end


def test_a_checkpoint_that_is_not_on_disk_is_not_shown_to_callbacks():
    run = Run()
    run.hooks, run.unsaved = ("checkpoint",), (3,)
    run.train()
    assert [done for done in run.done if "saved" in done or "hook" in done] == [
        "saved 3", "saved 6", "checkpoint hook 6",
    ]  # fmt: skip


def test_a_dispatch_ends_where_a_trace_begins_and_ends():
    run = Run(log_every=100, eval_every=100.0 * BATCH, checkpoint_every=100.0 * BATCH)
    run.ends = (0, 1, 5)
    run.train()
    dispatches = [done for done in run.done if done.startswith("steps")]
    assert dispatches == ["steps 1-1", "steps 2-5", "steps 6-6"]


def test_a_signal_during_the_diagnostics_of_step_0_ends_the_run_there():
    run = Run()
    run.spec.intervals.__dict__["diagnose_every"] = 4 * BATCH

    def diagnose(state):
        run.stop.requested = True
        return "measured 0"

    assert run.train(diagnose=diagnose)[1] == 0
    assert run.done == ["diagnose 0"]


def test_a_run_goes_on_from_its_step():
    run = Run()
    run.train(step=4)
    assert run.done == ["steps 5-6", "log 6", "validate 6", "record scores 6",
                        "save 6 with scores, last"]  # fmt: skip


def test_a_failed_save_is_heard_of_before_the_next_and_may_put_it_off():
    run = Run()
    run.failed, run.not_due = True, (3,)
    run.train()
    assert run.done[:6] == [
        "steps 1-2", "hear of the failure 2", "log 2", "steps 3-3", "validate 3", "record scores 3"
    ]  # fmt: skip
    assert run.done[6] == "steps 4-4"  # step 3 isn't saved


@pytest.mark.parametrize(
    ("where", "at", "done"),
    [
        # The log of the step is there already; the state to go back to is scored and saved.
        ("metrics", 2, ["steps 1-2", "log 2", "roll back 2", "log 2", "save 2, last"]),
        ("state", 3, ["steps 3-3", "roll back 3", "validate 3", "record scores 3",
                      "save 3 with scores, last"]),
    ],
)  # fmt: skip
def test_a_run_that_goes_back_saves_at_once_and_trains_on(where, at, done):
    run = Run()
    run.spec.config.nonfinite.policy = "rollback"
    run.not_finite = {where: at}
    state, step = run.train()
    start = run.done.index(done[0])
    assert run.done[start : start + len(done)] == done
    assert (int(state.step), step) == (6, 6)


def test_the_time_of_a_rollback_is_no_part_of_the_training_speed(monkeypatch):
    late_s = [0.0]
    monotonic = SimpleNamespace(monotonic=lambda: time.monotonic() + late_s[0])
    monkeypatch.setattr(clock_module, "time", monotonic)
    run, clock, laps = Run(), Clock(), []
    run.spec.config.nonfinite.policy = "rollback"
    run.not_finite = {"state": 3}

    class Slow(Recovery):
        def check_state(self, state, step):
            late_s[0] += 1000.0
            super().check_state(state, step)

        def roll_back(self, found, step):
            late_s[0] += 1000.0
            return super().roll_back(found, step)

    class Timed(Recorder):
        def training(self, step, metrics, *, waited_s):
            laps.append(clock.lap(step, BATCH)[1])

    run.train(recovery=Slow(run), recorder=Timed(run), clock=clock)
    assert late_s[0] >= 2000.0
    assert len(laps) == 3
    assert max(laps) < 1000.0


def test_a_state_that_is_not_finite_is_neither_scored_nor_saved():
    run = Run()
    run.not_finite = {"state": 3}
    with pytest.raises(NumericalError):
        run.train()
    assert run.done == ["steps 1-2", "log 2", "steps 3-3", "roll back 3"]


def test_a_workdir_that_is_gone_ends_the_run_before_anything_is_written():
    run = Run()

    def gone():
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        run.train(check_workdir=gone)
    assert run.done == ["steps 1-2"]


def test_a_dispatch_has_no_more_steps_than_the_run():
    spec = Run(duration=100.0 * BATCH, steps_per_dispatch=10**9).spec
    assert spec.batch_shape == (100, 1, BATCH)
