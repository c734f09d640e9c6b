"""Configs as JSON: nothing is lost, and what older versions wrote is read."""

import dataclasses
import json
import subprocess
import sys

import pytest

from resnet_jax.config.io import bound_fields, describe_differences, from_json, to_json
from resnet_jax.config.schema import default_config, flatten
from resnet_jax.errors import ConfigError
from resnet_jax.models.branches import BRANCHES, Basic, register_branch


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


@pytest.fixture
def registered(monkeypatch):
    """A branch that another run in this process has registered, with a field."""
    monkeypatch.setattr(BRANCHES, "_modules", dict(BRANCHES._modules))

    @register_branch("passing")
    @dataclasses.dataclass(frozen=True)
    class Passing(Basic):
        passing_scale: float = 0.1

    yield
    del BRANCHES["passing"]


def test_branches_of_other_runs_leave_no_trace(registered):
    """A config that doesn't use them is the same in a process that doesn't know them."""
    config = default_config()
    assert "passing_scale" in config.model
    program = """
import json, sys
from resnet_jax.config.io import bound_fields, from_json, to_json
text = sys.stdin.read()
config = from_json(text)
print(json.dumps([to_json(config), bound_fields(config)]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=to_json(config),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [to_json(config), bound_fields(config)]
    config.model.passing_scale = 0.2
    assert json.loads(to_json(config))["model"]["passing_scale"] == 0.2


def test_unknown_fields_of_a_model_that_are_not_set_are_left_out(tiny_config):
    """As earlier versions wrote them."""
    earlier = json.loads(to_json(tiny_config))
    earlier["model"]["layer_scale"] = None
    assert flatten(from_json(json.dumps(earlier))) == flatten(tiny_config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sead": 1}, "it has a field sead that this version doesn't know"),
        ({"sead": None}, "it has a field sead that this version doesn't know"),
        ({"model": {"eca": 1}}, "field model.eca .* need their module in `extensions`"),
        ({"extensions": 1}, "its extensions are 1, not a list of modules"),
        ({"extensions": ["no_such_module"]}, "there is no module no_such_module"),
        ({"extensions": [["os"]]}, "it holds import names of modules"),
    ],
)
def test_what_this_version_cannot_read_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        from_json(json.dumps(default_config().to_dict() | change))
