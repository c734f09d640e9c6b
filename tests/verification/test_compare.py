"""Differences of records, of arrays, and of what computed them."""

import math

import numpy as np
import pytest

from resnet_jax.verification import compare
from resnet_jax.verification.compare import (
    describe_other,
    first_array_difference,
    first_record_difference,
)

LINE = {"step": 4, "split": "train", "loss": 1.5, "img_per_s": 10.0, "wall_s": 3.0}
HERE = {
    "hardware": {"cpu": "one", "devices": 4, "processes": 2},
    "versions": {"jaxlib": "0.10.0"},
    "convolutions": "XLA",
    "code": "abc",
    "xla_flags": "",
    "xla_threads": 4,
    "cores": 2,
    "options": {"jax_enable_x64": "False"},
}


@pytest.mark.parametrize(
    ("recorded", "replayed", "expected"),
    [
        ([LINE], [LINE | {"img_per_s": 99.0, "wall_s": 0.0, "batches": "new"}], None),
        ([LINE], [LINE | {"loss": 1.25}], ("train loss", "1.5 on record, 1.25 replayed", 0.25)),
        (
            [LINE | {"batches": "a"}],
            [LINE | {"batches": "b"}],
            ("train batches", "a on record, b replayed", None),
        ),
        ([LINE], [], ("train", "isn't in the replay", None)),
        ([], [LINE], ("train", "isn't in metrics.jsonl", None)),
        ([LINE | {"extra": 1}], [LINE], ("train extra", "1 on record, None replayed", None)),
    ],
)
def test_the_first_difference_of_records(recorded, replayed, expected):
    later = LINE | {"step": 8}
    found = first_record_difference([*recorded, later], [*replayed, later | {"loss": 0.0}])
    assert found
    if expected is None:
        assert (found.step, found.what) == (8, "train loss")
    else:
        assert (found.step, found.what, found.detail, found.largest) == (4, *expected)


@pytest.mark.parametrize(
    ("there", "here", "largest"),
    [
        (np.float32([1, math.nan, math.inf]), np.float32([1, math.nan, math.inf]), None),
        (np.float32([0.0]), np.float32([-0.0]), 0.0),
        (np.float32([1, 2]), np.float32([1, 4]), 2.0),
        (np.float32([1, 2]), np.float32([1, math.nan]), math.inf),
        (np.float32([1, 2]), np.float32([1]), math.inf),
        (np.int32(3), np.int32(5), 2.0),
    ],
)
def test_arrays_are_compared_by_their_bits(there, here, largest, monkeypatch):
    arrays = {"saved": {"a": np.int32(1), "b": there}, "replayed": {"a": np.int32(1), "b": here}}
    monkeypatch.setattr(
        compare, "read_back", lambda folder, names: {name: arrays[folder][name] for name in names}
    )
    found = first_array_difference(8, ["a", "b"], "saved", "replayed")
    if largest is None:
        assert found is None
        return
    assert (found.step, found.what) == (8, "b")
    assert found.largest == (largest if math.isfinite(largest) else None)


def test_what_else_computes_is_named():
    def describe(recorded, *, fixed_shards=False):
        return describe_other(recorded, HERE, fixed_shards=fixed_shards)

    assert describe(HERE) == ""
    assert describe(None) == "the run doesn't record what computed it"
    assert describe(HERE | {"code": "other"}) == "code other, here abc"
    other = HERE | {"hardware": HERE["hardware"] | {"devices": 1, "processes": 1}}
    assert describe(other) == "devices 1, here 4; processes 1, here 2"
    assert describe(other, fixed_shards=True) == ""
    other = HERE | {"versions": {"jaxlib": "0.11.0"}}
    assert describe(other, fixed_shards=True) == "jaxlib 0.11.0, here 0.10.0"
    other = HERE | {"xla_flags": "--xla_a=1", "xla_threads": 8}
    assert describe(other) == "xla_flags --xla_a=1, here none; xla_threads 8, here 4"
    older = {name: value for name, value in HERE.items() if name != "xla_threads"}
    assert describe(older) == "xla_threads not on record, here 4"
    assert describe(HERE | {"cores": 1}) == "cores 1, here 2"


def test_options_that_differ_are_named():
    def describe(options):
        return describe_other(HERE | {"options": options}, HERE, fixed_shards=True)

    assert describe({"jax_enable_x64": "True"}) == "jax_enable_x64 True, here False"
    assert describe(HERE["options"] | {"NVIDIA_TF32_OVERRIDE": "0"}) == (
        "NVIDIA_TF32_OVERRIDE 0, here not set"
    )
    assert describe({}) == "jax_enable_x64 not set, here False"
    older = {name: value for name, value in HERE.items() if name != "options"}
    assert describe_other(older, HERE, fixed_shards=True) == "JAX's options not on record"
