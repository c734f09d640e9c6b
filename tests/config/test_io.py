"""Configs as JSON: nothing is lost, and what older versions wrote is read."""

import json

import pytest

from resnet_jax.config.io import describe_differences, from_json, to_json
from resnet_jax.config.schema import default_config, flatten
from resnet_jax.errors import ConfigError


def test_configs_survive_json(tiny_config):
    again = from_json(to_json(tiny_config))
    assert flatten(again) == flatten(tiny_config)
    assert to_json(again) == to_json(tiny_config)


def test_fields_that_an_older_version_did_not_have_get_their_defaults(tiny_config):
    older = json.loads(to_json(tiny_config))
    del older["extensions"], older["metrics"], older["data"]["augmentations"]
    text = json.dumps(older)
    assert flatten(from_json(text)) == flatten(tiny_config)
    assert describe_differences(text, to_json(tiny_config)) == []


def test_only_fields_that_may_not_change_are_differences(tiny_config):
    old = to_json(tiny_config)
    tiny_config.schedule.base_lr, tiny_config.log_every = 0.3, 1
    assert describe_differences(old, to_json(tiny_config)) == ["schedule.base_lr: 0.1 → 0.3"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sead": 1}, "it has a field sead that this version doesn't know"),
        ({"model": {"eca": 1}}, "field model.eca .* need their module in `extensions`"),
        ({"extensions": 1}, "its extensions are 1, not a list of modules"),
        ({"extensions": ["no_such_module"]}, "there is no module no_such_module"),
        ({"extensions": [["os"]]}, "it holds import names of modules"),
    ],
)
def test_what_this_version_cannot_read_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        from_json(json.dumps(default_config().to_dict() | change))
