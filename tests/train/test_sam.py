"""Sharpness-aware minimisation: the gradient of a training step, against one written out."""

import jax
import numpy as np
import pytest

from resnet_jax.train.sam import SamConfig
from tests.train.small_step import after_step, assert_close, make_batch, run_steps, softmax_loss


def gradient_uphill(state, images, labels, *, radius):
    gradient = jax.grad(softmax_loss)
    slope = gradient(state.params, state, images, labels)
    norm = np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(slope)))
    above = jax.tree.map(lambda w, g: w + radius * g / norm, state.params, slope)
    return gradient(above, state, images, labels)


def test_the_gradient_is_taken_uphill_and_all_else_where_it_is():
    batch = make_batch(0)
    before, after = run_steps([batch], sam=SamConfig(0.3))
    _, plain = run_steps([batch])
    gradient = gradient_uphill(before, batch.images[0], batch.labels[0], radius=0.3)
    assert_close(after.params, after_step(before, gradient))
    assert not np.allclose(after.params["fc"]["kernel"], plain.params["fc"]["kernel"], rtol=1e-3)
    assert_close(after.batch_stats, plain.batch_stats, rtol=1e-6)
    assert float(after.meter.loss) == pytest.approx(float(plain.meter.loss), rel=1e-6)


def test_steps_between_have_plain_gradients():
    batches = [make_batch(i) for i in range(3)]
    states = run_steps(batches, sam=SamConfig(0.3, every=2))
    for i, radius in enumerate((0.3, 0.0, 0.3)):
        images, labels = batches[i].images[0], batches[i].labels[0]
        gradient = gradient_uphill(states[i], images, labels, radius=radius)
        assert_close(states[i + 1].params, after_step(states[i], gradient))


def test_each_micro_batch_goes_uphill_on_its_own():
    batch = make_batch(0, micro_batches=2)
    before, after = run_steps([batch], sam=SamConfig(0.3))
    parts = [
        gradient_uphill(before, batch.images[i], batch.labels[i], radius=0.3) for i in range(2)
    ]
    assert_close(after.params, after_step(before, jax.tree.map(lambda a, b: (a + b) / 2, *parts)))


def test_eight_devices_go_uphill_together():
    batch = make_batch(0)
    _, expected = run_steps([batch], sam=SamConfig(0.3))
    _, after = run_steps([batch], sam=SamConfig(0.3), devices=8)
    assert_close(after.params, expected.params)
