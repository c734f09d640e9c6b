"""The model of docs/scaling.md against the estimates made where programs were compiled."""

import importlib
import json
import sys
from pathlib import Path

import pytest

import resnet_jax

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def scaling():
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("scaling")
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def v5e(scaling):
    return scaling.OnChip.load("resnet50", "v5e")


def test_predictions_match_the_compiled_programs(scaling, v5e):
    """At the batches that were compiled, on the slice that they were compiled for."""
    large = scaling.predict(v5e, (2, 2), v5e.large["batch_per_chip"])
    assert large.total == pytest.approx(v5e.large["roofline"]["step_s"], rel=0.01)
    assert large.img_per_s == pytest.approx(v5e.large["roofline"]["img_per_s"], rel=0.01)
    small = scaling.predict(v5e, (2, 2), v5e.small["batch_per_chip"])
    exchanges = small.statistics + small.gradients
    assert small.at_best + exchanges == pytest.approx(v5e.small["roofline"]["step_s"], rel=0.01)
    assert small.at_best < small.on_chip == pytest.approx(large.on_chip / 8)


def test_the_program_for_256_chips_is_that_for_4(scaling):
    few, many = (scaling.load(f"resnet50_v5e-{n}_256") for n in (4, 256))
    for quantity in ("mb_per_image", "gflop_per_image"):
        assert many[quantity] == pytest.approx(few[quantity], rel=0.02)
    assert many["collectives"][0]["bytes"] == few["collectives"][0]["bytes"]


def test_what_each_change_does(scaling, v5e):
    base = scaling.predict(v5e, (16, 16), 32)
    groups = scaling.predict(v5e, (16, 16), 32, whole_batch=False)
    assert groups.statistics == 0
    assert groups.on_chip == base.on_chip
    wide = scaling.predict(v5e, (16, 16), 32, gradient_bytes=4)
    assert 1.5 * base.gradients < wide.gradients < 2 * base.gradients
    assert scaling.predict(v5e, (16, 16), 256, overlap=True).gradients == 0
    # The latency of the sums grows with the sides of the torus, not with the batch.
    assert scaling.predict(v5e, (16, 16), 256).statistics == base.statistics
    assert scaling.predict(v5e, (4, 4), 32).statistics < base.statistics / 2


@pytest.mark.parametrize("model", ["resnet50", "resnet152"])
def test_each_program_does_the_work_of_its_network(scaling, model):
    """Forward and backward are three times the forward pass, and a multiply-add is two operations.

    The gradient of the images isn't needed, and padding isn't computed.
    """
    fields = {"scan": True}  # traced as quickly as a shallow one
    macs = resnet_jax.summarize(resnet_jax.create_model(model, **fields), (224, 224, 3)).macs
    programs = [json.loads(path.read_text()) for path in scaling.RESULTS.glob(f"{model}_*.json")]
    assert programs
    for program in programs:
        assert program["gflop_per_image"] == pytest.approx(6e-9 * macs, rel=0.03)
        assert program["memory"]["fits"]
        # Two of a bfloat16, but four where batch normalisation needs a kernel's sums first.
        assert 2 <= program["gradient_reduction"]["bytes_per_parameter"] < 2.7
        assert {row["kind"] for row in program["collectives"]} == {"all-reduce"}
        assert program["versions"]["libtpu"]
        assert len(program["commit"].removesuffix("+")) == 40


def test_the_committed_step_moves_less_than_google_flaxs(scaling):
    """By a tenth at least, and in no more memory."""
    others = sorted(scaling.RESULTS.glob("flax_*.json"))
    assert others
    for other in others:
        theirs = json.loads(other.read_text())
        ours = scaling.load(other.stem.removeprefix("flax_"))
        assert ours["versions"] == theirs["versions"]
        assert ours["mb_per_image"] <= 0.9 * theirs["mb_per_image"]
        assert ours["memory"]["peak_bytes"] <= theirs["memory"]["peak_bytes"]


@pytest.fixture(scope="module")
def gpu_programs():
    folder = BENCHMARKS / "results" / "gpu_compile"
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_each_program_for_gpus_does_the_work_of_its_network(gpu_programs):
    """Without products with padding, and without elementwise operations."""
    for name in ("resnet50", "resnet152"):
        model = resnet_jax.create_model(name, scan=True)
        macs = resnet_jax.summarize(model, (224, 224, 3)).macs
        found = {case: one for case, one in gpu_programs.items() if one.get("model") == name}
        assert found
        for case, program in found.items():
            # A widening convolution's moments cost a quarter of its products more.
            assert 0.94 < program["gflop_per_image"] / (6e-9 * macs) < 1.06
            assert program["memory"]["fits"]
            assert program["versions"]["jax-cuda12-plugin"] == program["versions"]["jaxlib"]
            by_shards = {"all-to-all", "all-gather"}
            sums = by_shards if case.startswith("shards_") else {"all-reduce"}
            assert {row["kind"] for row in program["collectives"]} <= sums


def test_what_is_compiled_for_a_gpu_does_not_depend_on_their_number(gpu_programs):
    one, node = (gpu_programs[f"resnet50_{name}_256"] for name in ("h200-1", "h200-8"))
    assert node["mb_per_image"] == pytest.approx(one["mb_per_image"], rel=0.03)
    assert node["gflop_per_image"] == pytest.approx(one["gflop_per_image"], rel=0.01)


def test_the_committed_step_for_gpus_moves_less_than_google_flaxs(gpu_programs):
    """By a quarter where statistics are of the whole batch, and in two thirds of the memory."""
    for gpu in ("h200", "a100"):
        theirs = gpu_programs[f"flax_resnet50_{gpu}-1_256"]
        ours = gpu_programs[f"resnet50_{gpu}-1_256"]
        assert ours["versions"] == theirs["versions"]
        assert ours["mb_per_image"] <= 0.75 * theirs["mb_per_image"]
        assert ours["memory"]["peak_bytes"] <= 0.67 * theirs["memory"]["peak_bytes"]
