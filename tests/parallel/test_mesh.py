"""Meshes, and shardings of batches."""

import dataclasses

import jax
import numpy as np
import pytest

from resnet_jax.errors import ConfigError
from resnet_jax.parallel.mesh import (
    batch_sharding,
    check_divisible,
    make_mesh,
    put_global,
    replicated,
)


def test_a_mesh_takes_all_devices_or_the_first_few():
    assert make_mesh().shape == {"data": 8, "fsdp": 1}
    assert make_mesh(fsdp=4).shape == {"data": 2, "fsdp": 4}
    assert list(make_mesh(data=2).devices.flat) == jax.devices()[:2]


@pytest.mark.parametrize("data", [0, -2, 9])
def test_a_mesh_that_does_not_fit_is_refused(data):
    with pytest.raises(ConfigError, match=f"mesh.data is {data}, but the number of devices is 8"):
        make_mesh(data=data)


def test_batch_sharding_splits_the_batch_axis():
    x = np.arange(48).reshape(3, 16)
    y = jax.device_put(x, batch_sharding(make_mesh(), axis=1))
    for i, shard in enumerate(y.addressable_shards):
        np.testing.assert_array_equal(shard.data, x[:, 2 * i : 2 * i + 2])
    assert jax.device_put(x, replicated(make_mesh())).is_fully_replicated


def test_the_mesh_must_divide_the_batch():
    check_divisible("batch_size", 64, make_mesh())
    with pytest.raises(ConfigError, match="batch_size is 60, .* use 56 or 64"):
        check_divisible("batch_size", 60, make_mesh())
    with pytest.raises(ConfigError, match="use 8"):
        check_divisible("batch_size", 3, make_mesh())


@pytest.mark.parametrize("fsdp", [0, 3, 16])
def test_a_mesh_that_is_no_rectangle_is_refused(fsdp):
    with pytest.raises(ConfigError, match=f"mesh.fsdp is {fsdp}, .* it can be 1, 2, 4, 8"):
        make_mesh(fsdp=fsdp)
    with pytest.raises(ConfigError, match="mesh.data is 4 × mesh.fsdp 4 = 16, but .* is 8"):
        make_mesh(data=4, fsdp=4)


def test_put_global_copies_each_shard_to_its_device():
    x = np.arange(48).reshape(16, 3)
    placed = put_global({"x": x}, batch_sharding(make_mesh(fsdp=2)))["x"]
    np.testing.assert_array_equal(placed, x)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}


@dataclasses.dataclass(frozen=True)
class _Chip:
    """A TPU as JAX describes it."""

    id: int
    coords: tuple[int, int, int]
    platform: str = "tpu"
    device_kind: str = "TPU v4"
    core_on_chip: int = 0
    process_index: int = 0
    slice_index: int = 0


def test_a_part_of_a_tpu_host_is_a_mesh_in_the_order_of_its_devices():
    chips = [_Chip(i, (i % 2, i // 2, 0)) for i in range(4)]
    assert sorted(chip.id for chip in make_mesh(devices=chips).devices.flat) == [0, 1, 2, 3]
    for count in (1, 2, 3):
        assert list(make_mesh(data=count, devices=chips).devices.flat) == chips[:count]
