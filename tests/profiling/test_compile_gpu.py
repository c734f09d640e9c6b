"""The real training step, compiled by XLA's GPU compiler: run wherever the plugin is installed.

UPDATE_GOLDEN=1 pytest -m gpu   rewrites tests/golden/gpu_compile.txt
"""

import importlib
import json
import os
from pathlib import Path

import jax
import pytest

import resnet_jax
from resnet_jax.config import recipes
from resnet_jax.config.schema import default_config
from resnet_jax.profiling import compile as ahead
from resnet_jax.profiling.gpu import installed_plugin
from resnet_jax.profiling.slices import describe_slice

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(installed_plugin() is None, reason="XLA's GPU compiler isn't installed"),
]

GOLDEN = Path(__file__).parents[1] / "golden" / "gpu_compile.txt"
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BATCH = 64


def _compiled(topology, **fields):
    config = default_config()
    config.model.stage_sizes = (1, 1)
    config.model.dtype = "bfloat16"
    config.data.name = "cifar10"
    config.data.resident = False
    config.steps_per_dispatch = 2
    config.model.update(fields)
    slice_ = describe_slice(topology)
    spec = ahead.make_spec(config, slice_, batch_per_chip=BATCH)
    return ahead.describe(spec, ahead.compile_training(spec), slice_)


@pytest.fixture(scope="module")
def one():
    """A small network of basic blocks on one GPU."""
    return _compiled("h200:1")


@pytest.fixture(scope="module")
def bottlenecks():
    """A small network of bottlenecks on two nodes of eight GPUs."""
    return _compiled("h100:2x8", name="resnet50", stem="cifar")


@pytest.fixture(scope="module")
def groups():
    """Of bottlenecks, normalised over groups of a GPU's images."""
    return _compiled("h200:1", name="resnet50", stem="cifar", bn_group_size=32)


def test_memory_is_accounted_for(one):
    memory = one["memory"]
    assert memory["fits"]
    assert memory["parameter_bytes"] == 4 * one["parameters"]
    assert memory["parameter_bytes"] < memory["peak_bytes"] < memory["limit_bytes"]
    assert one["largest_batch_per_chip"] > BATCH


def test_images_that_are_decoded_as_needed_are_sent_step_by_step():
    slice_ = describe_slice("h200:1")
    spec = ahead.make_spec(recipes.make("goyal_2017"), slice_, batch_per_chip=32)
    document = ahead.describe(spec, ahead.TooLarge(2.0**40), slice_)
    assert document["steps_per_dispatch"] == 1
    assert document["memory"]["example_bytes"] == 32 * (224 * 224 * 3 + 3 * 4)


def test_the_work_per_image_is_that_of_the_network(one, bottlenecks):
    """Forward and backward are three times the forward pass, less the first layer's gradient."""
    for document, name, stem in ((one, "resnet20", "cifar"), (bottlenecks, "resnet50", "cifar")):
        model = resnet_jax.create_model(name, num_classes=10, stage_sizes=(1, 1), stem=stem)
        macs = resnet_jax.summarize(model, (32, 32, 3)).macs
        assert document["gflop_per_image"] == pytest.approx(6e-9 * macs, rel=0.15)


def test_what_computes_and_what_is_communicated(one, bottlenecks):
    kinds = {row["kind"]: row for row in one["kernels"]}
    assert kinds["cuDNN"]["count"] >= 2 * 6  # convolutions, forward and backward
    total = sum(row["bytes"] for row in one["kernels"])
    assert total == pytest.approx(one["mb_per_image"] * BATCH * 1e6)
    assert one["collectives"] == []
    assert {row["kind"] for row in bottlenecks["collectives"]} == {"all-reduce"}
    assert {row["group_size"] for row in bottlenecks["collectives"]} == {16}
    roofline = bottlenecks["roofline"]
    assert roofline["img_per_s_per_node"] == pytest.approx(roofline["img_per_s"] / 2)


def test_bytes_per_image_have_not_grown(one, bottlenecks, groups):
    measured = {
        "one": one["mb_per_image"],
        "bottlenecks": bottlenecks["mb_per_image"],
        "groups": groups["mb_per_image"],
    }
    if os.environ.get("UPDATE_GOLDEN"):
        lines = (f"{name}: {value:.3f} MB per image\n" for name, value in measured.items())
        GOLDEN.write_text("".join(lines))
    for line in GOLDEN.read_text().splitlines():
        name, _, value = line.partition(": ")
        assert measured.pop(name) <= 1.02 * float(value.split()[0]), line
    assert not measured


def _committed():
    """Names of the committed figures that need nothing beside the compiler."""
    paths = (BENCHMARKS / "results" / "gpu_compile").glob("*.json")
    return sorted(path.stem for path in paths if not path.stem.startswith("flax"))


@pytest.mark.thorough
@pytest.mark.parametrize("name", _committed())
def test_committed_figures(name, monkeypatch):
    """Each program, compiled again, has the figures of its result but for copies of a few bytes.

    It takes half a minute to two each.
    """
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    cases = importlib.import_module("compile")
    result = json.loads((BENCHMARKS / "results" / "gpu_compile" / f"{name}.json").read_text())
    if result["versions"]["jax"] != jax.__version__:
        pytest.skip(f"the figures are of jax {result['versions']['jax']}")
    found = cases.compile_named(name)
    for quantity in ("mb_per_image", "gflop_per_image"):
        assert found[quantity] == pytest.approx(result[quantity], rel=1e-3), quantity
    peaks = (document["memory"]["peak_bytes"] for document in (found, result))
    assert next(peaks) == pytest.approx(next(peaks), rel=1e-3)
    assert found.get("collectives") == result.get("collectives")
