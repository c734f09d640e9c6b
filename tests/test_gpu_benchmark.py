"""benchmarks/gpu.py at toy size on the CPU, and the parts that need no GPU."""

import importlib
import json
import subprocess
import sys
import time
import types
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from resnet_jax.ops.activation import relu
from resnet_jax.ops.batch_norm import MaxPooled, PointwiseProduct, batch_normalise

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def load():
    """A function that imports a file of benchmarks/."""
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module
    sys.path.remove(str(BENCHMARKS))


def _program():
    """A gradient through each form for GPUs; the product is one to twice the channels."""

    @jax.jit
    @partial(jax.grad, argnums=(0, 1))
    def step(x, kernel):
        scale, bias = jnp.ones(8), jnp.zeros(8)
        normalise = partial(batch_normalise, groups=1, epsilon=1e-5, dtype=x.dtype)
        y = normalise(PointwiseProduct(x, kernel), scale, bias)[0]
        return normalise(MaxPooled(relu(y)), scale, bias)[0].sum()

    shapes = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((2, 8, 8, 4), (4, 8)))
    return step.trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()


def test_each_variant_is_another_program(load):
    formulations = load("formulations")
    own = _program()
    programs = {}
    for name in formulations.VARIANTS:
        with formulations.variant(name):
            programs[name] = _program()
    assert own not in programs.values()
    # Here the only product is to twice the channels.
    assert programs["wide_convolutions"] == programs["without_convolution"]
    assert _program() == own


def test_only_complete_results_of_the_present_code_count(load, tmp_path):
    gpu = load("gpu")
    out = tmp_path / "item.json"
    assert not gpu.is_measured(out)
    present = gpu.fingerprint()
    for complete, fingerprint, counts in (
        (True, present, True),
        (False, present, False),
        (True, "another", False),
    ):
        out.write_text(json.dumps({"complete": complete, "fingerprint": fingerprint}))
        assert gpu.is_measured(out) is counts


def test_a_part_that_is_postponed_leaves_the_item_incomplete(load, tmp_path, monkeypatch):
    gpu, task = load("gpu"), load("gpu_task")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    for parts, complete in (((("a", 1), ("b", task.NO_TIME)), False), ((("a", 1),), True)):
        module = types.ModuleType("measured")
        module.parts = lambda _, parts=parts: iter(parts)
        monkeypatch.setitem(sys.modules, "measured", module)
        monkeypatch.setitem(gpu.ITEMS, "item", gpu.Item("measured", "parts", 1))
        told = task.Task(toy=True, data=None, folder=tmp_path, deadline=time.monotonic() + 300)
        gpu.measure("item", told, "1234")
        result = json.loads((tmp_path / "item.json").read_text())
        assert result["results"] == dict(parts)
        assert result["commit"] == "1234"
        assert result["complete"] is gpu.is_measured(tmp_path / "item.json") is complete


@pytest.mark.parametrize(
    ("timm", "why"),
    [
        ("raise RuntimeError('no compiler\\nat all')", "RuntimeError: no compiler"),
        ("import os; os._exit(1)", "the process of timm ended"),
        ("import time; time.sleep(60)", "no time"),
    ],
)
def test_what_keeps_timm_from_training_is_told(load, tmp_path, monkeypatch, timm, why):
    (tmp_path / "torch.py").touch()
    (tmp_path / "timm.py").write_text(timm)
    monkeypatch.syspath_prepend(str(tmp_path))
    peer = load("gpu_timm").Timm(toy=True)
    found = peer.prepare(compiled=False, seconds=1 if why == "no time" else 300)
    for process in peer._process._processes.values():
        process.kill()
    peer.end()
    assert isinstance(found, str)
    assert found.startswith(why)
    assert isinstance(found, load("gpu_task").Postponed) is (why == "no time")


@pytest.mark.thorough
def test_timm_trains_at_toy_size(load):
    pytest.importorskip("timm")
    peer = load("gpu_timm").Timm(toy=True)
    found = peer.prepare(compiled=False, seconds=600)
    assert found["images"] == 4
    assert peer.take(compiled=False, count=2) > 0
    peer.end()


def test_kernels_of_a_gpu_are_those_of_its_streams(load):
    def event(name, duration, stats):
        return types.SimpleNamespace(name=name, duration_ns=duration, stats=stats)

    def line(name, *events):
        return types.SimpleNamespace(name=name, events=events)

    op = [("hlo_op", "fusion.1")]
    # Kernels of a CUDA graph don't name their operation.
    kernels = line("Stream #14(Compute)", event("a", 3, op), event("a", 4, op), event("b", 1, []))
    summary = line("XLA Ops", event("a", 7, op))
    trace = types.SimpleNamespace(
        planes=[
            types.SimpleNamespace(name="/device:GPU:0", lines=[kernels, summary]),
            types.SimpleNamespace(name="/host:CPU", lines=[line("thread", event("c", 9, op))]),
        ]
    )
    assert load("gpu_profile")._by_kernel(trace) == {"a": [3, 4], "b": [1]}


def test_table6_without_cifar10_is_skipped(load, tmp_path):
    task = load("gpu_task").Task(toy=False, data=None, folder=tmp_path, deadline=0)
    with pytest.raises(load("gpu_task").MissingError, match="--data"):
        next(load("gpu_table6").table6(task))


def test_how_a_run_of_table6_ends(load, tmp_path, monkeypatch):
    """It finished, it was stopped to be continued, or it failed."""
    table6, task = load("gpu_table6"), load("gpu_task").Task
    script = "import sys, time; time.sleep(float(sys.argv[1])); sys.exit(int(sys.argv[2]))"
    for seconds, code, expected in ((0, 0, None), (0, 75, "stopped"), (0, 1, RuntimeError)):
        command = [sys.executable, "-c", script, str(seconds), str(code)]
        monkeypatch.setattr(table6, "_command", lambda *_, command=command: command)
        present = task(toy=True, data=None, folder=tmp_path, deadline=time.monotonic() + 300)
        if expected is RuntimeError:
            with pytest.raises(RuntimeError, match="ended with 1"):
                table6._train("resnet20", tmp_path, present)
        else:
            ended = table6._train("resnet20", tmp_path, present)
            assert (ended or "").startswith(expected or "")
            assert bool(ended) == bool(expected)


@pytest.mark.thorough
def test_every_item_at_toy_size(tmp_path):
    """All items leave a complete result, and nothing is measured twice."""
    root = BENCHMARKS.parent
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--toy"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    items = ("ceilings", "correct", "speed", "forms", "cifar", "repeat", "profile", "table6")
    for item in items:
        result = json.loads((root / "build" / "gpu_toy" / f"{item}.json").read_text())
        assert result["complete"], item
        assert result["results"], item
        if item == "correct":
            assert result["results"]["normalised convolution, two groups"]
        for field in ("command", "commit", "versions", "device", "seeds", "wall_s"):
            assert result[field], (item, field)
    again = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert again.stdout == ""
