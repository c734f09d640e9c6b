"""The table of config fields, and the configs and checks that are made from it."""

import collections

import numpy as np
import pytest

import resnet_jax
from resnet_jax.config.fields import FIELDS, MAY_CHANGE
from resnet_jax.config.schema import default_config, flatten, set_field, validate
from resnet_jax.errors import ConfigError


def test_the_table_has_each_field_once_with_a_line_of_documentation():
    assert max(collections.Counter(field.name for field in FIELDS).values()) == 1
    for field in FIELDS:
        assert "\n" not in field.doc
        assert "|" not in field.doc
        assert field.doc.endswith(".")
        assert field.default is not None or field.kind


def test_defaults_are_those_of_the_table_and_of_the_networks():
    config = resnet_jax.default_config()
    flat = flatten(config)
    assert {field.name: field.default for field in FIELDS}.items() <= flat.items()
    others = set(flat) - {field.name for field in FIELDS}
    assert {"model.width", "model.norm", "model.units"} <= others
    assert all(name.startswith("model.") and flat[name] is None for name in others)
    assert set(MAY_CHANGE) <= set(flat)
    validate(config)


@pytest.mark.parametrize("field", ["seed", "extensions", "data.train"])
def test_a_config_without_a_field_is_refused_with_its_name(field, tmp_path):
    config = default_config().unlock()
    *path, key = field.split(".")
    del (config[path[0]] if path else config)[key]
    for use in (validate, lambda config: resnet_jax.fit(config, tmp_path / "run")):
        with pytest.raises(ConfigError, match=f"^The config has no field {field};"):
            use(config)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("seed", -1, "seed is -1; it must be less than 2**32 and can't be negative."),
        ("batch_size", 0, "batch_size is 0; it must be greater than 0."),
        ("mixup", -0.1, "mixup is -0.1; it can't be negative."),
        ("schedule.final", 1.0, "schedule.final is 1.0; it must be at least 0 and less than 1."),
        ("duration_unit", "", "duration_unit is empty; it can be epochs, examples."),
        (
            "data.policy",
            "trivail",
            "data.policy is 'trivail'; it can be trivial, randaugment or empty."
            " Did you mean 'trivial'?",
        ),
        (
            "prometheus_dir",
            "gs://b",
            "prometheus_dir is 'gs://b'; it is a folder of this host, or empty.",
        ),
        ("data.magnitude", 10.5, "data.magnitude is 10.5; it can be 0 to 10."),
        ("data.image_size", 0, "data.image_size is 0; it must be at least 1."),
        ("data.eval_size", -1, "data.eval_size is -1; it must be at least 1."),
        ("data.eval_resize", 0, "data.eval_resize is 0; it must be at least 1."),
        ("data.workers", -2, "data.workers is -2; it can be -1, 0 or more."),
        (
            "data.random_crop_area",
            (0.9, 0.1),
            "data.random_crop_area is (0.9, 0.1); it is a smallest and a largest share, such as"
            " (0.08, 1.0), or () for none.",
        ),
        (
            "diagnostics.what",
            ("norms", "sharp"),
            "diagnostics.what names 'sharp'; it can be norms, signal, bn_drift, updates, gates,"
            " cka, sharpness. Did you mean 'sharpness'?",
        ),
        ("optimizer.layer_decay", 0.0, "it must be greater than 0 and at most 1."),
        ("model.head_dropout", float("nan"), "model.head_dropout is nan; it must be finite."),
        (
            "seeds",
            (np.int64(0), np.int64(1)),
            "it must consist of Python's own numbers and texts.",
        ),
        (
            "vary",
            (("schedule.base_lr", (np.float32(0.1),)),),
            "it must consist of Python's own numbers and texts.",
        ),
    ],
)
def test_a_value_that_is_not_accepted_is_named_with_those_that_are(name, value, message):
    config = default_config()
    set_field(config, name, value)
    with pytest.raises(ConfigError) as error:
        validate(config)
    assert str(error.value).endswith(message)
    assert str(error.value).startswith(name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data.mean": (0.5,)}, r"data.mean is \(0.5,\) and data.std \(\); both have a value"),
        ({"data.eval_size": 8}, "data.eval_size is 8; it goes with data.random_crop_area"),
        ({"data.size_boundaries": (1.0,)}, r"data.size_boundaries is \(1.0,\); it goes with"),
        ({"data.random_crop_area": (0.1, 1.0)}, "data.random_crop_area needs data.image_size"),
        (
            {"optimizer.trainable": "head", "optimizer.layer_decay": 0.5},
            "optimizer.layer_decay lowers the rates of all else",
        ),
        ({"distill.model": "resnet20"}, "a weight file and the name of its network go together"),
        ({"bce_threshold": 0.5}, "loss is 'softmax'; the threshold is for 'bce'"),
        ({"model.param_dtype": "bfloat16"}, "runs have parameters in float32"),
    ],
)
def test_fields_that_do_not_go_together_are_named(fields, message):
    config = default_config()
    for name, value in fields.items():
        set_field(config, name, value)
    with pytest.raises(ConfigError, match=message):
        validate(config)


def test_a_value_of_another_type_is_refused():
    with pytest.raises(ConfigError, match="batch_size can't be 'many'; it is of type int"):
        set_field(default_config(), "batch_size", "many")
