"""Configs from anywhere: what isn't one is refused in one line, by a typed error."""

import pytest

from resnet_jax.config.io import from_json
from resnet_jax.config.schema import default_config, flatten, set_field, validate
from resnet_jax.errors import ConfigError
from tests.faults.fuzz import outcome


@pytest.mark.thorough
def test_two_thousand_mutated_configs(tmp_path, record_property):
    result = outcome("configs", tmp_path)
    record_property("tries", result["accepted"] + result["refused"])
    assert result["accepted"] > 100
    assert result["kinds_of_refusal"] > 100


@pytest.mark.parametrize("name", [n for n, v in flatten(default_config()).items() if v is not None])
def test_a_field_that_needs_a_value_cannot_do_without(name):
    config = default_config()
    set_field(config, name, None)
    with pytest.raises(ConfigError, match=f"^{name} is None; it needs a value"):
        validate(config)


def test_numbers_beyond_all_measure_are_refused():
    for number in (10**400, 10**5000):
        with pytest.raises(ConfigError, match="^duration can't be ") as caught:
            set_field(default_config(), "duration", number)
        assert len(str(caught.value)) < 400


def test_a_document_of_fifty_thousand_levels_is_refused():
    with pytest.raises(ConfigError, match="isn't a config"):
        from_json("[" * 50_000)


def test_a_dictionary_is_no_value():
    for name in ("schedule.name", "data.dir", "batch_size", "model.stage_sizes"):
        with pytest.raises(ConfigError, match=f"^{name} can't be") as caught:
            set_field(default_config(), name, {"../x": 1, "a.b": 2})
        assert "\n" not in str(caught.value)
