"""Declared fields: which values they take, and that every field says what it changes."""

import dataclasses
from typing import Literal

import numpy as np
import pytest

import resnet_jax
from resnet_jax.errors import ConfigError
from resnet_jax.models.fields import (
    Changes,
    changes,
    check_fields,
    check_needs,
    fields_of,
    setting,
    values_of,
)
from resnet_jax.models.presets import PRESETS


@dataclasses.dataclass(frozen=True)
class Settings:
    kind: Literal["wide", "deep"] = "wide"
    count: int = 1
    offset: int = 0
    share: float = setting(0.5, "training", below=1)
    ratio: float = setting(1.0, most=1)
    epsilon: float = setting(1e-5, positive=True)
    sizes: tuple[int, ...] = setting((1,), "shapes")
    limit: int | None = setting(None, "training", least=2)
    flag: bool = setting(False, "compilation")


def test_defaults_and_values_in_range_are_taken():
    for fields in (
        {},
        {"kind": "deep", "count": 7, "offset": 0, "share": 0, "ratio": 1, "flag": True},
        {"sizes": (3, 4), "limit": 2, "epsilon": 1},
    ):
        check_fields(Settings(**fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "deeper"}, "model.kind is 'deeper'; it can be wide, deep. Did you mean 'deep'"),
        ({"count": 0}, "model.count is 0; it takes integers from 1 up"),
        ({"offset": -1}, "model.offset is -1; it takes integers from 0 up"),
        ({"share": 1.0}, r"model.share is 1.0; it must be in \[0, 1\)"),
        ({"ratio": 1.5}, r"model.ratio is 1.5; it must be in \[0, 1\]"),
        ({"epsilon": 0.0}, "model.epsilon is 0.0; it must be positive"),
        ({"epsilon": float("nan")}, "model.epsilon is nan; it must be a finite number"),
        ({"sizes": ()}, r"model.sizes is \(\); it must be a tuple"),
        ({"sizes": (0,)}, r"model.sizes is \(0,\); it takes integers from 1 up"),
        ({"limit": 1}, "model.limit is 1; it takes integers from 2 up"),
        ({"flag": 1}, "model.flag is 1; it can be True or False"),
    ],
)
def test_other_values_are_refused_by_name(fields, message):
    with pytest.raises(ConfigError, match=message):
        check_fields(Settings(**fields))


def test_integers_of_a_frozen_dataclass_become_pythons():
    settings = Settings(count=np.int64(3), sizes=(np.uint8(2), 1))
    check_fields(settings)
    assert settings == Settings(count=3, sizes=(2, 1))
    assert type(settings.count) is type(settings.sizes[0]) is int


def test_a_field_without_effect_is_refused():
    needs = [(("offset", "share"), lambda s: s.kind == "deep", "kind='deep'")]
    check_needs(Settings(), needs)
    check_needs(Settings(kind="deep", offset=3), needs)
    with pytest.raises(ConfigError, match="model.offset is 3, which needs kind='deep'"):
        check_needs(Settings(offset=3), needs)


def test_a_plain_field_changes_inference():
    assert changes(fields_of(Settings)["count"]) == "inference"
    assert changes(fields_of(Settings)["share"]) == "training"
    assert values_of(Settings())["sizes"] == (1,)


def test_every_field_of_every_network_says_what_it_changes():
    for build in {preset.build for preset in PRESETS.values()}:
        for name, field in fields_of(build).items():
            assert changes(field) in Changes.__args__, (build, name)
    fields = fields_of(resnet_jax.ResNet)
    assert {n for n, f in fields.items() if changes(f) == "compilation"} == {
        "scan", "remat", "dtype", "param_dtype",
    }  # fmt: skip
