"""Blocks deleted and reordered, on tiny networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.research.lesions import apply_lesioned, block_names, interchangeable, reorder
from tests.research.tiny import SHAPE, make_tiny_network


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (3, *SHAPE))


@pytest.mark.parametrize("shortcut", ["A", "none"])
def test_a_deleted_block_leaves_the_network_that_never_had_it(images, shortcut):
    model, variables = make_tiny_network((3, 1), shortcut=shortcut)
    smaller, _ = make_tiny_network((2, 1), shortcut=shortcut)
    kept = jnp.array([True, False, True, True])
    without = {  # the third block takes the second's name
        collection: {
            name if name != "layer1_2" else "layer1_1": part
            for name, part in tree.items()
            if name != "layer1_1"
        }
        for collection, tree in variables.items()
    }
    found = apply_lesioned(model, variables, images, kept)
    np.testing.assert_allclose(found, smaller.apply(without, images), rtol=1e-5, atol=1e-6)
    whole = apply_lesioned(model, variables, images, jnp.ones(4, bool))
    np.testing.assert_allclose(whole, model.apply(variables, images), rtol=1e-6)
    assert not np.allclose(whole, found, atol=1e-3)


def test_blocks_of_one_shape_change_places():
    model, variables = make_tiny_network((3, 2))
    assert block_names(model) == ["layer1_0", "layer1_1", "layer1_2", "layer2_0", "layer2_1"]
    groups = interchangeable(model)
    assert groups == [["layer1_1", "layer1_2"], ["layer2_1"]]
    changed = reorder(variables, [["layer1_2", "layer1_1"], ["layer2_1"]], groups)
    for collection in variables:
        moved, before = changed[collection], variables[collection]
        assert moved["layer1_1"] is before["layer1_2"]
        assert moved["layer1_2"] is before["layer1_1"]
        assert all(moved[name] is before[name] for name in before if "layer1_" not in name[:7])
