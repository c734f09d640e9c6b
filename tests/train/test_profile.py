"""Traces of training steps: exactly those, readable by TensorBoard and Perfetto."""

import gzip
import json
import logging
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import resnet_jax
from resnet_jax.errors import UsageError
from resnet_jax.train import clock as clock_module
from resnet_jax.train import profile
from resnet_jax.train.clock import Clock
from resnet_jax.train.profile import ProfiledSteps, parse_steps
from tests.conftest import make_tiny_config


class Steps:
    """Stands for `CompiledSteps`: each step is a product of matrices and a tanh."""

    def __init__(self):
        self.taken, self.compiled = [], 0
        self._run = jax.jit(lambda x, n: jax.lax.fori_loop(0, n, lambda _, y: jnp.tanh(y @ y), x))

    def compile(self, state, step):
        self.compiled += 1
        self._run(state, np.int32(1)).block_until_ready()

    def __call__(self, state, batches, *, first, steps):
        assert batches == "batches"
        self.taken.append((first, steps))
        return self._run(state, np.int32(steps))


def _profiled(steps, workdir, run_steps=None, clock=None):
    watchdog = SimpleNamespace(now=lambda doing: None)
    return ProfiledSteps(
        run_steps or Steps(), steps, epath.Path(workdir), clock=clock or Clock(), watchdog=watchdog
    )


def _take(profiled, *ends):
    """Take steps in dispatches with these ends."""
    state, first = jnp.ones((8, 8)), 0
    with profiled:
        for end in ends:
            state = profiled(state, "batches", first=first, steps=end - first)
            first = end
    return state


def _folder(workdir):
    (folder,) = (workdir / "tensorboard" / "plugins" / "profile").iterdir()
    return folder


def _events(workdir):
    """The names of the events of the trace for Perfetto, which is Chrome's format."""
    text = gzip.decompress((_folder(workdir) / "perfetto_trace.json.gz").read_bytes())
    document = json.loads(text)
    assert set(document) >= {"traceEvents", "displayTimeUnit"}
    return [e for e in document["traceEvents"] if e.get("ph") == "X"]


def _tanhs(workdir):
    """How often the trace has the step's tanh."""
    names = [event["name"] for event in _events(workdir)]
    return sum("tanh" in name and not name.startswith("end") for name in names)


def test_the_trace_has_the_steps_and_no_others(tmp_path):
    steps = Steps()
    profiled = _profiled((3, 7), tmp_path, steps)
    assert profiled.ends == (2, 7)
    state = _take(profiled, 2, 6, 7, 11)
    assert steps.taken == [(0, 2), (2, 4), (6, 1), (7, 4)]
    assert steps.compiled == 1  # before the trace begins
    assert _tanhs(tmp_path) == 5
    annotations = [e for e in _events(tmp_path) if e["name"] == "train"]
    assert sorted(int(e["args"]["step_num"]) for e in annotations) == [3, 7]
    (for_tensorboard,) = _folder(tmp_path).glob("*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(for_tensorboard)).planes
    found = sum("tanh" in e.name for plane in planes for line in plane.lines for e in line.events)
    assert found >= 5
    np.testing.assert_array_equal(state, _take(_profiled(None, tmp_path / "none"), 2, 6, 7, 11))
    assert not (tmp_path / "none").exists()


def test_a_run_that_ends_within_the_steps_leaves_the_trace_of_those_it_took(tmp_path):
    _take(_profiled((2, 100), tmp_path), 1, 4)
    assert _tanhs(tmp_path) == 3


def test_a_run_that_goes_on_behind_the_first_step_traces_the_rest(tmp_path):
    profiled = _profiled((2, 6), tmp_path)
    with profiled:
        profiled(jnp.ones((8, 8)), "batches", first=4, steps=2)
    assert _tanhs(tmp_path) == 2


def test_writing_the_trace_is_no_part_of_the_training_speed(tmp_path, monkeypatch):
    stop, late_s = jax.profiler.stop_trace, [0.0]

    def slowly():
        late_s[0] += 1000.0
        stop()

    monkeypatch.setattr(profile.jax.profiler, "stop_trace", slowly)
    monotonic = SimpleNamespace(monotonic=lambda: time.monotonic() + late_s[0])
    monkeypatch.setattr(clock_module, "time", monotonic)
    clock = Clock()
    profiled = _profiled((1, 2), tmp_path, clock=clock)
    profiled._run_steps.compile(jnp.ones((8, 8)), 0)
    clock.start_lap(0)
    _take(profiled, 2)
    assert clock.lap(2, 1)[1] < 1000.0
    assert late_s == [1000.0]


@pytest.mark.parametrize("call", ["start_trace", "stop_trace"])
def test_a_trace_that_cannot_be_made_is_a_warning(call, tmp_path, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("no\nprofiler")

    monkeypatch.setattr(logging.getLogger("resnet_jax"), "propagate", True)
    monkeypatch.setattr(profile.jax.profiler, call, fail)
    steps = Steps()
    _take(_profiled((2, 3), tmp_path, steps), 1, 2, 3, 4)
    monkeypatch.undo()
    if call == "stop_trace":
        jax.profiler.stop_trace()
    assert [first for first, _ in steps.taken] == [0, 1, 2, 3]
    assert "can't be traced (no profiler); the run goes on" in caplog.text


def test_a_full_disk_of_temporary_files_ends_no_run_in_a_bucket(tmp_path, monkeypatch, caplog):
    def fail():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logging.getLogger("resnet_jax"), "propagate", True)
    monkeypatch.setattr(profile.tempfile, "TemporaryDirectory", fail)
    steps = Steps()
    _take(_profiled((2, 3), "gs://bucket/run", steps), 1, 2, 3)
    assert [first for first, _ in steps.taken] == [0, 1, 2]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "No space left on device); the run goes on" in caplog.text


@pytest.mark.parametrize("steps", [(3, 4), (1, 1), None])
def test_a_run_that_takes_none_of_the_steps_says_so(steps, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("resnet_jax"), "propagate", True)
    with _profiled(steps, tmp_path) as profiled:
        profiled(jnp.ones((8, 8)), "batches", first=1, steps=1)
    said = [] if steps is None else [f"this process took none of {steps[0]}:{steps[1]}."]
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == said
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize(
    "text",
    ["", "5", "x", "1:", ":2", "0:3", "4:3", "-1:3", "1:2:3", "1.5:2", "٣:٤", "1:99999999999"],
)
def test_what_is_no_pair_of_steps_is_refused(text):
    with pytest.raises(UsageError, match="must be START:STOP"):
        parse_steps(text)


def test_a_pair_of_steps():
    assert parse_steps("101:110") == (101, 110)
    assert parse_steps("7:7") == (7, 7)


def test_steps_that_the_run_does_not_have_are_refused(tiny_config, tmp_path):
    with pytest.raises(UsageError, match="profile are 3:13, but the run has the steps 1:12"):
        resnet_jax.fit(tiny_config, tmp_path / "run", profile=(3, 13))
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.thorough
def test_a_profiled_run_has_the_same_bits(tmp_path):
    config = make_tiny_config()
    config.checkpoint_every = 32.0
    plain = resnet_jax.fit(config, tmp_path / "plain")
    profiled = resnet_jax.fit(config, tmp_path / "profiled", profile=(3, 6))
    jax.tree.map(np.testing.assert_array_equal, plain.state.params, profiled.state.params)

    def numbers(history):
        times = ("wall_s", "img_per_s", "data_wait")
        return [{k: v for k, v in record.items() if k not in times} for record in history]

    assert numbers(plain.history) == numbers(profiled.history)
    annotations = [e for e in _events(tmp_path / "profiled") if e["name"] == "train"]
    steps = [int(e["args"]["step_num"]) for e in annotations]
    assert steps == [3, 4, 5, 6]  # each step is saved, so each is a dispatch
    resnet_jax.fit(config, tmp_path / "one", profile=(4, 4))
    of_one, of_four = (_counts(tmp_path / name) for name in ("one", "profiled"))
    repeated = {name for name, count in of_one.items() if of_four.get(name) == 4 * count}
    assert len(repeated) > 20  # operations of the step's body


def _counts(workdir):
    names = [event["name"] for event in _events(workdir)]
    return {name: names.count(name) for name in set(names) if not name.startswith("end")}


@pytest.mark.thorough
def test_a_run_in_a_bucket_has_its_trace_there(bucket, tmp_path, tiny_config):
    resnet_jax.fit(tiny_config, "gs://bucket/profiled", profile=(2, 3), stop_at_step=4)
    assert _events(bucket / "profiled")
