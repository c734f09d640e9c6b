"""Losses against their definitions, in NumPy and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_jax.train.losses import (
    LOSSES,
    LossConfig,
    binarize,
    binary_cross_entropy,
    cross_entropy,
)
from tests.train.small_step import (
    CLASSES,
    MODEL,
    after_step,
    assert_close,
    make_batch,
    run_steps,
)


def test_label_smoothing_mixes_in_the_mean_over_classes():
    logits = jax.random.normal(jax.random.key(0), (4, 7))
    labels = jnp.array([0, 3, 6, 3])
    log_p = jax.nn.log_softmax(logits)
    hard, uniform = -log_p[jnp.arange(4), labels], -log_p.mean(axis=-1)
    np.testing.assert_allclose(cross_entropy(logits, labels), hard, rtol=1e-5)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, 7), 0.1)
    smooth = LOSSES["softmax"](logits, targets)
    np.testing.assert_allclose(smooth, 0.9 * hard + 0.1 * uniform, rtol=1e-5)


def test_binary_cross_entropy_is_the_mean_of_that_of_each_class():
    random = np.random.default_rng(0)
    logits = random.normal(size=(4, 7)).astype(np.float32)
    targets = random.dirichlet(np.ones(7), size=4).astype(np.float32)
    p = 1 / (1 + np.exp(-logits))
    expected = -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean(axis=-1)
    np.testing.assert_allclose(binary_cross_entropy(logits, targets), expected, rtol=1e-5)


def test_the_summed_one_is_as_many_times_larger_as_there_are_classes():
    logits, targets = jnp.array([[0.5, -1.0, 2.0]]), jnp.array([[1.0, 1.0, 0.0]])
    mean, total = (LOSSES[name](logits, targets) for name in ("bce", "bce_sum"))
    np.testing.assert_allclose(total, 3 * mean, rtol=1e-6)


def test_both_classes_of_a_mixed_image_count_fully():
    """timm's order: targets are smoothed, mixed, and compared with the threshold."""

    def mixed(share, smoothing):
        one_hot = np.eye(10, dtype=np.float32)[[3, 7]]
        smooth = (1 - smoothing) * one_hot + smoothing / 10
        return jnp.asarray(share * smooth[:1] + (1 - share) * smooth[1:])

    both, one = np.eye(10)[[3]] + np.eye(10)[[7]], np.eye(10)[[3]]
    for smoothing in (0.0, 0.1):
        for share in (0.5, 0.75, 0.25):
            np.testing.assert_array_equal(binarize(mixed(share, smoothing), 0.2), both)
        np.testing.assert_array_equal(binarize(mixed(1.0, smoothing), 0.2), one)
    np.testing.assert_array_equal(binarize(mixed(0.79, 0.0), 0.2), both)
    np.testing.assert_array_equal(binarize(mixed(0.79, 0.1), 0.2), one)  # 0.9 · 0.21 + 0.01 < 0.2


def test_binary_cross_entropy_of_large_logits_is_finite():
    logits, targets = jnp.array([[200.0, -300.0]]), jnp.array([[0.0, 1.0]])
    np.testing.assert_allclose(binary_cross_entropy(logits, targets), [250.0])


def test_classes_are_questions_of_their_own():
    """Unlike the softmax, the loss of one class doesn't depend on the logits of others."""
    first, second = jnp.array([[1.0, 2.0, -3.0]]), jnp.array([[1.0, 2.0, 5.0]])
    targets = jnp.array([[1.0, 0.0, 0.0]])
    difference = binary_cross_entropy(second, targets) - binary_cross_entropy(first, targets)
    alone = optax.sigmoid_binary_cross_entropy(jnp.array([5.0, -3.0]), jnp.zeros(2))
    np.testing.assert_allclose(difference, (alone[0] - alone[1]) / 3, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "threshold", "on", "off"),
    [("bce", 0.0, 0.8, 0.1), ("bce", 0.2, 1.0, 0.0), ("bce_sum", 0.0, 0.8, 0.1)],
)
def test_a_binary_loss_is_trained_on_and_reported(name, threshold, on, off):
    batch = make_batch(0)
    before, after = run_steps([batch], loss=LossConfig(name, 0.3, threshold))

    def loss(params):
        inputs = (batch.images[0].astype(np.float32) - 127.5) / 73.6
        variables = {"params": params, "batch_stats": before.batch_stats}
        logits, _ = MODEL.apply(variables, inputs, train=True, mutable=["batch_stats"])
        targets = np.where(np.eye(CLASSES)[batch.labels[0]], on, off)
        return LOSSES[name](logits, targets).mean()

    value, gradient = jax.value_and_grad(loss)(before.params)
    assert_close(after.params, after_step(before, gradient))
    assert float(after.meter.loss) / 8 == pytest.approx(float(value), rel=1e-5)
