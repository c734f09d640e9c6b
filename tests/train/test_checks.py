"""Checks of a config against the mesh, before JAX starts."""

import os

import pytest

from resnet_jax.config.schema import set_field
from resnet_jax.errors import ConfigError
from resnet_jax.parallel import shards
from resnet_jax.train.checks import fix_threads
from resnet_jax.train.fit import fit


@pytest.fixture
def fresh(monkeypatch):
    """As in a process in which JAX hasn't started."""
    monkeypatch.setenv("PJRT_NPROC", "1")  # is restored after the test
    monkeypatch.delenv("PJRT_NPROC")
    monkeypatch.setattr(shards, "_jax_has_started", lambda: False)


def test_the_threads_are_those_of_the_shards(fresh, tiny_config):
    fix_threads(tiny_config)
    assert "PJRT_NPROC" not in os.environ
    set_field(tiny_config, "mesh.shards", 8)
    fix_threads(tiny_config)
    assert os.environ["PJRT_NPROC"] == "8"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (6, "mesh.shards is 6; it can be 0 or a power of two"),
        (-8, "mesh.shards is -8; it can be 0 or a power of two"),
        (65536, "doesn't split into mesh.shards = 65536 shards"),
        ("8", "mesh.shards is '8'; it can be 0 or a power of two"),
        (None, "mesh.shards is None; it needs a value"),
    ],
)
def test_impossible_shards_are_refused_and_change_no_threads(
    value, message, fresh, tiny_config, tmp_path
):
    with tiny_config.ignore_type():
        tiny_config.mesh.shards = value
    with pytest.raises(ConfigError, match=message):
        fit(tiny_config, tmp_path / "run")
    assert "PJRT_NPROC" not in os.environ


def test_a_config_without_the_section_is_refused(fresh, tiny_config, tmp_path):
    with tiny_config.ignore_type():
        tiny_config.mesh = None
    with pytest.raises(ConfigError, match="has no field mesh"):
        fit(tiny_config, tmp_path / "run")
    assert "PJRT_NPROC" not in os.environ
