"""What a run carries from step to step."""

import jax.numpy as jnp
import numpy as np

from resnet_jax.train.state import Meter


def test_means_of_sums_that_overflow_are_the_largest_float32():
    """Each of two steps is finite; JSON, which the means go to, has no infinity."""
    meter, finite = Meter.zero(), jnp.bool_(True)
    for step in range(2):
        huge = jnp.float32(3e38)
        meter = meter.add(step, finite=finite, examples=8, loss=huge, top1=4, grad_norm=huge)
    largest = float(np.finfo(np.float32).max)
    assert meter.means() == {"loss": largest, "top1": 0.5, "grad_norm": largest}
