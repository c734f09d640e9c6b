"""The devices on which a run is trained again, and what is said of them."""

import jax
import pytest

from resnet_jax.config.schema import set_field
from resnet_jax.ops.native import library as native
from resnet_jax.parallel.mesh import make_mesh
from resnet_jax.train.restore import environment_of
from resnet_jax.verification.replay import _arrange, _here


@pytest.mark.parametrize(
    ("fields", "together"),
    [
        ({"mesh.data": 1}, 1),
        ({"mesh.data": 8}, 8),
        ({"mesh.data": -1}, 8),
        ({"mesh.data": 8, "mesh.shards": 8}, 1),
        ({"mesh.data": -1, "mesh.shards": 8}, 1),
        ({"mesh.data": 2, "seeds": (0, 1)}, 1),
    ],
    ids=str,
)
def test_convolutions_are_named_as_the_run_names_them(fields, together, tiny_config, monkeypatch):
    """With fixed shards, and with a seed on each device, a convolution is on one device."""
    monkeypatch.setattr(native, "describe", lambda platform, devices: f"{platform} {devices}")
    for name, value in fields.items():
        set_field(tiny_config, name, value)
    here = _here(tiny_config)
    assert here["convolutions"] == f"cpu {together}"
    assert here == environment_of(tiny_config, make_mesh(data=tiny_config.mesh.data))


@pytest.mark.parametrize(
    ("fields", "devices"),
    [
        ({"batch_size": 48}, 8),
        ({"batch_size": 40, "accumulate": 2}, 4),
        ({"batch_size": 48, "mesh.shards": 4}, 4),
        ({"batch_size": 48, "mesh.shards": 16}, 8),
    ],
    ids=str,
)
def test_too_many_devices_become_as_many_as_split_the_batch_or_the_shards(
    fields, devices, tiny_config
):
    for name, value in fields.items():
        set_field(tiny_config, name, value)
    _arrange(tiny_config, 2 * jax.device_count())
    assert (tiny_config.mesh.data, tiny_config.mesh.fsdp) == (devices, 1)
