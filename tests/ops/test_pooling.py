"""Pooling pads as PyTorch does."""

import jax.numpy as jnp
import numpy as np

from resnet_jax.ops.pooling import average_pool, max_pool


def test_max_pool_pads_like_pytorch():
    """On an even size "SAME" would begin its windows elsewhere."""
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(max_pool(x)[0, :, :, 0], [[5, 7], [13, 15]])


def test_average_pool_counts_only_what_a_block_at_the_edge_has():
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    np.testing.assert_array_equal(average_pool(x, 2)[0, :, :, 0], [[2, 3.5], [6.5, 8]])
