"""Losses against their definitions, in NumPy and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from resnet_jax.train.losses import (
    LOSSES,
    binarize,
    binary_cross_entropy,
    cross_entropy,
    distillation,
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


def test_distillation_is_the_divergence_from_the_teacher():
    random = np.random.default_rng(1)
    logits, taught = random.normal(size=(2, 4, 7)).astype(np.float32)

    def softmax(x):
        powers = np.exp(x / 3.0)
        return powers / powers.sum(axis=-1, keepdims=True)

    p, q = softmax(logits), softmax(taught)
    expected = 9.0 * (q * np.log(q / p)).sum(axis=-1)
    np.testing.assert_allclose(distillation(logits, taught, temperature=3.0), expected, rtol=1e-4)
    np.testing.assert_allclose(distillation(taught, taught, temperature=3.0), 0.0, atol=1e-5)


def test_classes_are_questions_of_their_own():
    """Unlike the softmax, the loss of one class doesn't depend on the logits of others."""
    first, second = jnp.array([[1.0, 2.0, -3.0]]), jnp.array([[1.0, 2.0, 5.0]])
    targets = jnp.array([[1.0, 0.0, 0.0]])
    difference = binary_cross_entropy(second, targets) - binary_cross_entropy(first, targets)
    alone = optax.sigmoid_binary_cross_entropy(jnp.array([5.0, -3.0]), jnp.zeros(2))
    np.testing.assert_allclose(difference, (alone[0] - alone[1]) / 3, rtol=1e-5)
