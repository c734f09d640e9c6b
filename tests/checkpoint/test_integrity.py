"""Checksums detect any change, for any type and sharding."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from resnet_jax.checkpoint.integrity import checksums, different, named_leaves
from resnet_jax.parallel.mesh import make_mesh

TYPES = (np.float32, ml_dtypes.bfloat16, np.int32, np.uint8, np.float64, bool)


def _array(dtype, shape=(3, 5)):
    bits = np.random.default_rng(0).integers(0, 256, (*shape, np.dtype(dtype).itemsize), np.uint8)
    return (bits % 2 == 1)[..., 0] if dtype is bool else bits.view(dtype)[..., 0]


@pytest.mark.parametrize("dtype", TYPES)
def test_devices_and_numpy_agree(dtype):
    for shape in ((3, 5), (), (0, 2)):
        array = _array(dtype, shape)
        if dtype is not np.float64:  # JAX disables it by default
            assert checksums({"a": array}) == checksums({"a": jnp.asarray(array)})


@settings(max_examples=100)
@given(st.sampled_from(TYPES[:-1]), st.data())
def test_any_flipped_bit_is_seen(dtype, data):
    array = _array(dtype)
    before = checksums({"a": array})
    flat = array.reshape(-1).view(np.uint8)
    flat[data.draw(st.integers(0, flat.size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert different(checksums({"a": array}), before) == ["a"]


def test_places_types_shapes_and_names_count():
    a = np.arange(6, dtype=np.float32)
    others = [a[::-1].copy(), a.astype(np.int32), a.reshape(2, 3), np.roll(a, 1)]
    sums = {checksums({"a": array})["a"] for array in [a, *others]}
    assert len(sums) == 5
    assert different(checksums({"a": a}), checksums({"b": a})) == ["a", "b"]


@pytest.mark.parametrize("spec", [(), ("data",), (None, "fsdp"), (("data", "fsdp"),)])
def test_the_layout_on_devices_does_not_count(spec):
    array = np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)
    sharding = NamedSharding(make_mesh(fsdp=4), PartitionSpec(*spec))
    placed = jax.device_put(array, sharding)
    assert checksums({"a": placed}) == checksums({"a": array})


def test_names_are_paths():
    tree = {"a": [jnp.zeros(1), {"b": jnp.zeros(2)}], "none": None}
    assert list(named_leaves(tree)) == ["a.0", "a.1.b"]
