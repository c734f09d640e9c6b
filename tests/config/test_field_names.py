"""Hints for names of config fields that don't exist."""

import pytest

from resnet_jax.config import field_names
from resnet_jax.config.schema import default_config, flatten, set_field
from resnet_jax.errors import ConfigError

FIELDS = flatten(default_config())


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("lr", "schedule.base_lr"),
        ("learning_rate", "schedule.base_lr"),
        ("optimizer.lr", "schedule.base_lr"),
        ("epochs", "duration"),
        ("num_epochs", "duration"),
        ("batch", "batch_size"),
        ("train.batch-size", "batch_size"),
        ("momentum", "optimizer.momentum"),
        ("weight_decay", "optimizer.weight_decay"),
        ("wd", "optimizer.weight_decay"),
        ("depth", "model.name"),
        ("model.depth", "model.name"),
        ("arch", "model.name"),
        ("dataset", "data.name"),
        ("modle.name", "model.name"),
        ("batchsize", "batch_size"),
        ("label_smothing", "label_smoothing"),
    ],
)
def test_the_field_that_is_meant(name, field):
    with pytest.raises(ConfigError) as error:
        set_field(default_config(), name, 1)
    message = f"There is no config field {name!r}. Did you mean {field!r}?"
    assert str(error.value) == message == str(field_names.unknown_field(name, FIELDS))


def test_a_name_of_several_fields_names_all():
    hint = "Did you mean 'data.name' or 'model.name' or 'optimizer.name' or 'schedule.name'?"
    assert hint in str(field_names.unknown_field("name", FIELDS))


def test_without_anything_similar_there_is_no_hint():
    assert str(field_names.unknown_field("qqq", FIELDS)) == "There is no config field 'qqq'."


def test_hints_are_fields_that_exist_and_other_names_are_not():
    """A name that is a field can't be another field's other name."""
    assert set(field_names._OTHER_NAMES) <= set(FIELDS)
    listed = [name for names in field_names._OTHER_NAMES.values() for name in names.split()]
    assert len(set(listed)) == len(listed)
    assert not set(listed) & set(FIELDS)
