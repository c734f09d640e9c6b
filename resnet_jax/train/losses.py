"""Losses of logits [n, k] against targets [n, k], probabilities of the classes; [n] in nats."""

from collections.abc import Callable

import jax
import optax
from jaxtyping import Array, Float


def binary_cross_entropy(
    logits: Float[Array, "n k"], targets: Float[Array, "n k"]
) -> Float[Array, " n"]:
    """Cross-entropy of each class against all others, averaged over classes.

    Each class is a question of its own, so that mixed images may be of two of them (Wightman et
    al. 2021, 2110.00476, section 3.1; like timm's, the mean over classes, not their sum). LARS,
    LAMB and AdamW don't depend on that factor of k; SGD's learning rate does.
    """
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean(axis=-1)


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
}
"""By the name in a config."""
