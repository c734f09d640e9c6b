"""Losses of logits [n, k] against targets [n, k], probabilities of the classes; [n] in nats."""

from collections.abc import Callable

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


LOSSES: dict[str, Callable[[Array, Array], Array]] = {
    "softmax": optax.softmax_cross_entropy,
    "bce": binary_cross_entropy,
}
"""By the name in a config."""
