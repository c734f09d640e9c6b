"""Batches from host memory: the examples of the sampler, resident on the devices or not."""

import jax
import numpy as np
import pytest

from resnet_jax.data.datasets import ImageSet
from resnet_jax.data.loaders.in_memory import InMemoryLoader
from resnet_jax.data.loaders.sampler import IndexSampler
from resnet_jax.parallel.mesh import batch_sharding, make_mesh

SHAPE = (3, 2, 4)  # steps, micro-batches, examples
DATA = ImageSet(
    np.random.default_rng(0).integers(0, 256, (20, 2, 2, 1), np.uint8),
    np.arange(20, dtype=np.int32),
)


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("resident", [True, False])
def test_batches_are_those_of_the_sampler(resident, devices):
    mesh = make_mesh(data=devices)
    sampler = IndexSampler(seed=1, num_examples=20, batch_size=8)
    loader = InMemoryLoader(
        DATA,
        sampler,
        shape=SHAPE,
        layout=batch_sharding(mesh, axis=2),
        mesh=mesh,
        resident=resident,
    )
    loader.start(5)
    images, labels, ids, epochs = jax.device_get(loader.take(5))
    loader.close()
    wanted_ids, wanted_epochs = sampler.take(5, 3)
    np.testing.assert_array_equal(ids, wanted_ids.reshape(SHAPE))
    np.testing.assert_array_equal(epochs, wanted_epochs.reshape(SHAPE))
    if resident:  # the whole split, which `ids` index
        images, labels = images[ids], labels[ids]
    np.testing.assert_array_equal(images, DATA.images[ids])
    np.testing.assert_array_equal(labels, DATA.labels[ids])
    assert loader.waited_s == 0
