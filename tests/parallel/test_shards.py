import os
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from resnet_jax.errors import ConfigError
from resnet_jax.parallel import shards as shards_module
from resnet_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from resnet_jax.parallel.sharding import state_shardings
from resnet_jax.parallel.shards import FixedShards, fix_thread_pool, isolated, make_shards

MESHES = [(1, 1), (2, 1), (8, 1), (2, 4)]
RANDOM = np.random.default_rng(0)
BATCH = (RANDOM.standard_normal((32, 7)) * 10.0 ** RANDOM.integers(-4, 4, (32, 7))).astype("f4")


def _sums(shards, of_shard, batch):
    mapped = shards.map_devices(
        lambda batch: shards.sum(of_shard, batch),
        in_shardings=batch_sharding(shards.mesh),
        out_shardings=replicated(shards.mesh),
    )
    return jax.device_get(jax.jit(mapped)(batch))


def _tree_sum(values):
    """Pairs, then pairs of pairs, in float32 on the host."""
    while len(values) > 1:
        values = [a + b for a, b in zip(values[::2], values[1::2], strict=True)]
    return values[0]


@pytest.mark.parametrize(("data", "fsdp"), MESHES)
def test_sums_over_shards_are_a_binary_tree_on_every_mesh(data, fsdp):
    """Values of very different sizes, of which each order of summation has other bits."""
    shards = FixedShards(16, make_mesh(data=data, fsdp=fsdp))
    sums = _sums(shards, lambda shard, number: {"first": shard[0], "last": shard[-1]}, BATCH)
    for name, values in (("first", BATCH[::2]), ("last", BATCH[1::2])):
        np.testing.assert_array_equal(sums[name], _tree_sum(list(values)))
        assert (sums[name] != values.sum(axis=0)).any()


def test_a_shard_knows_its_number_and_counts_stay_integers():
    shards = FixedShards(8, make_mesh(data=4))
    sums = _sums(
        shards,
        lambda shard, number: (jnp.zeros(8).at[number].set(shard[0, 0]), jnp.int32(2**24 + 1)),
        BATCH,
    )
    np.testing.assert_array_equal(sums[0], BATCH[::4, 0])
    assert sums[1] == 8 * (2**24 + 1)
    assert sums[1].dtype == np.int32


@pytest.mark.parametrize("platform", ["gpu", "cuda", "tpu", "cpu"])
def test_gpus_run_deterministic_operations(platform):
    device = SimpleNamespace(platform=platform)
    mesh = SimpleNamespace(devices=np.array([[device]]), size=1)
    options = FixedShards(1, mesh).compiler_options
    assert options.get("xla_gpu_deterministic_ops", False) == (platform in ("gpu", "cuda"))


def test_optimisers_may_have_vectors_for_kernels():
    """Adafactor's state has them under the kernel's name: means over one of its axes."""
    leaf = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    state = {"opt_state": {"0": {"v": {"kernel": leaf(1)}, "v_row": {"kernel": leaf(32)}}}}
    shardings = state_shardings(state, make_mesh(data=2, fsdp=4))["opt_state"]["0"]
    assert shardings["v"]["kernel"].spec == PartitionSpec()
    assert shardings["v_row"]["kernel"].spec == PartitionSpec("fsdp")


def test_split_is_the_inverse_of_gather():
    shards = FixedShards(8, make_mesh(data=2, fsdp=4))
    tree = {"params": {"fc": {"kernel": BATCH[:, :4], "bias": BATCH[0]}}}
    shardings = state_shardings(tree, shards.mesh)
    assert shardings["params"]["fc"]["kernel"].spec == PartitionSpec("fsdp")

    def there_and_back(tree):
        whole = shards.gather(tree, shardings)
        assert whole["params"]["fc"]["kernel"].shape == (32, 4)
        return shards.split(whole, shardings), whole

    mapped = shards.map_devices(
        there_and_back,
        in_shardings=(shardings,),
        out_shardings=(shardings, replicated(shards.mesh)),
    )
    for result in jax.jit(mapped)(tree):
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(result), tree)


def test_isolated_functions_stay_apart_from_their_neighbours_in_the_compiled_program():
    def product_and_sum(a, b):
        return isolated(lambda a: a * 3.0, a) + b

    text = jax.jit(product_and_sum).lower(BATCH, BATCH).compile().as_text()
    assert " conditional(" in text
    np.testing.assert_array_equal(product_and_sum(BATCH, BATCH), BATCH * np.float32(3) + BATCH)


def test_shards_that_do_not_divide_among_the_devices_are_refused():
    assert make_shards(0, make_mesh(data=8)) is None
    assert make_shards(8, make_mesh(data=2, fsdp=4)).per_device == 1
    with pytest.raises(ConfigError, match="mesh.shards is 4, which isn.t divisible by 8"):
        make_shards(4, make_mesh(data=8))


@pytest.mark.parametrize(
    ("count", "mesh", "advice"),
    [
        (8, {"data": 3}, "isn't divisible by 3 devices; use mesh.data = 2."),
        (8, {"data": 7}, "isn't divisible by 7 devices; use mesh.data = 4."),
        (2, {"data": 5}, "isn't divisible by 5 devices; use mesh.data = 2."),
        (2, {"data": 4}, "isn't divisible by 4 devices; use mesh.shards = 4 or a larger power of"),
        (8, {"data": 2, "fsdp": 3}, "by 6 devices; use 4 devices (mesh.data × mesh.fsdp)."),
    ],
)
def test_the_advice_on_shards_and_devices_can_be_followed(count, mesh, advice):
    with pytest.raises(ConfigError, match=re.escape(advice)):
        make_shards(count, make_mesh(**mesh))


def test_the_thread_pool_is_fixed_before_jax_starts(monkeypatch, caplog):
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    monkeypatch.setattr(shards_module, "_jax_has_started", lambda: False)
    fix_thread_pool(0)
    assert "PJRT_NPROC" not in os.environ
    fix_thread_pool(8)
    assert os.environ["PJRT_NPROC"] == "8"
    fix_thread_pool(8)
    assert caplog.text == ""
    fix_thread_pool(4)
    assert os.environ["PJRT_NPROC"] == "8"
    assert "PJRT_NPROC is 8 and mesh.shards is 4" in caplog.text


def test_a_thread_pool_that_may_have_another_size_is_one_warning(monkeypatch, caplog):
    """JAX has started in this process."""
    jax.devices()
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    fix_thread_pool(8)
    assert "PJRT_NPROC" not in os.environ
    (record,) = caplog.records
    assert record.getMessage().startswith("JAX has started without PJRT_NPROC=8")
