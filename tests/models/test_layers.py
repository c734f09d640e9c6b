"""Convolutions pad as PyTorch does."""

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.models.layers import Conv


def test_convolution_pads_symmetrically():
    conv = Conv(features=1, kernel_size=3, stride=2)
    ones = {"params": {"kernel": jnp.ones((3, 3, 1, 1))}}
    y = conv.apply(ones, jnp.ones((1, 4, 4, 1)))
    np.testing.assert_array_equal(y[0, :, :, 0], [[4, 6], [6, 9]])  # SAME would give 9 first
    assert jax.eval_shape(conv.apply, ones, jnp.ones((1, 5, 5, 1))).shape == (1, 3, 3, 1)
