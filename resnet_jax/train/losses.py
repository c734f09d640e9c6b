"""Losses of logits [n, k] against targets [n, k], probabilities of the classes; [n] in nats."""

from collections.abc import Callable

import jax
import optax
from jaxtyping import Array, Float, Int


def cross_entropy(logits: Float[Array, "n k"], labels: Int[Array, " n"]) -> Float[Array, " n"]:
    """Cross-entropy of each example, in nats."""
    return optax.softmax_cross_entropy(logits, jax.nn.one_hot(labels, logits.shape[-1]))


def binary_cross_entropy(
    logits: Float[Array, "n k"], targets: Float[Array, "n k"]
) -> Float[Array, " n"]:
    """Cross-entropy of each class against all others, averaged over classes.

    Each class is a question of its own, so that mixed images may be of two of them (Wightman et
    al. 2021, 2110.00476, section 3.1; like timm's, the mean over classes, not their sum). LARS,
    LAMB and AdamW don't depend on that factor of k; SGD's learning rate does.
    """
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean(axis=-1)


def summed_binary_cross_entropy(
    logits: Float[Array, "n k"], targets: Float[Array, "n k"]
) -> Float[Array, " n"]:
    """`binary_cross_entropy` summed over classes: k times as large.

    For recipes whose SGD learning rate was tuned for the sum, such as MosaicML's
    (composer/loss/loss.py).
    """
    return optax.sigmoid_binary_cross_entropy(logits, targets).sum(axis=-1)


def binarize(targets: Float[Array, "n k"], threshold: float) -> Float[Array, "n k"]:
    """Targets above `threshold` become 1, all others 0.

    With mixup or CutMix an image then belongs to both of its classes, unless the share of a class
    is at most `threshold`. As in timm's `BinaryCrossEntropy` (timm/loss/binary_cross_entropy.py,
    `target_threshold`), the targets come smoothed and mixed: smoothing by s only moves the share
    at which a class begins to count, from t to about t / (1 - s).
    """
    return (targets > threshold).astype(targets.dtype)


def distillation(
    logits: Float[Array, "n k"], taught: Float[Array, "n k"], *, temperature: float
) -> Float[Array, " n"]:
    """T² times the divergence of softmax(logits / T) from softmax(taught / T).

    Hinton et al. 2015 (1503.02531), section 2: with T² gradients are of the same size at every
    temperature T. Theirs is the cross-entropy, of which this leaves out what no logits change.
    """
    log_p, log_targets = (jax.nn.log_softmax(x / temperature) for x in (logits, taught))
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(log_p, log_targets)


LOSSES: dict[str, Callable[[Array, Array], Array]] = {
    "softmax": optax.softmax_cross_entropy,
    "bce": binary_cross_entropy,
    "bce_sum": summed_binary_cross_entropy,
}
"""By the name in a config."""
