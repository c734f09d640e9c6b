"""Losses of logits [n, k] against class probabilities [n, k]; each returns [n], in nats."""

import dataclasses
from collections.abc import Callable

import jax
import optax
from jaxtyping import Array, Float, Int

from resnet_jax.utils.registry import Registry


def cross_entropy(logits: Float[Array, "n k"], labels: Int[Array, " n"]) -> Float[Array, " n"]:
    """Softmax cross-entropy of each example, in nats."""
    return optax.softmax_cross_entropy(logits, jax.nn.one_hot(labels, logits.shape[-1]))


def binary_cross_entropy(
    logits: Float[Array, "n k"], targets: Float[Array, "n k"]
) -> Float[Array, " n"]:
    """Binary cross-entropy of each class, averaged over the classes.

    A mixed image may belong to both of its classes (Wightman et al. 2021, 2110.00476, section
    3.1). The mean over classes is timm's choice. The updates of LARS, LAMB and AdamW don't depend
    on the factor k between mean and sum; SGD's learning rate does.
    """
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean(axis=-1)


def summed_binary_cross_entropy(
    logits: Float[Array, "n k"], targets: Float[Array, "n k"]
) -> Float[Array, " n"]:
    """Binary cross-entropy of each class, summed over the classes: k × `binary_cross_entropy`.

    For recipes whose SGD learning rate was tuned for the sum, such as MosaicML's
    (composer/loss/loss.py).
    """
    return optax.sigmoid_binary_cross_entropy(logits, targets).sum(axis=-1)


def binarize(targets: Float[Array, "n k"], threshold: float) -> Float[Array, "n k"]:
    """Replace targets above `threshold` by 1, all others by 0.

    With mixup or CutMix an image then belongs to both of its classes, unless the share of a class
    is at most `threshold`. As in timm's `BinaryCrossEntropy` (timm/loss/binary_cross_entropy.py,
    `target_threshold`), the targets are smoothed and mixed before: smoothing by s moves the share
    at which a class begins to count from t to about t / (1 - s).
    """
    return (targets > threshold).astype(targets.dtype)


Loss = Callable[[Float[Array, "n k"], Float[Array, "n k"]], Float[Array, " n"]]

LOSSES: Registry[Loss] = Registry(
    "loss",
    {
        "softmax": optax.softmax_cross_entropy,
        "bce": binary_cross_entropy,
        "bce_sum": summed_binary_cross_entropy,
    },
)
"""Loss functions by the name in `config.loss`."""


def register_loss(name: str, loss: Loss) -> None:
    """Add a training loss, for `config.loss`.

    Args:
        name: an identifier.
        loss: called with logits [n, k], float32, and class probabilities [n, k], which have been
            smoothed and mixed; returns the loss of each example, [n]. Runs under `jit`.

    Raises:
        ConfigError: the name isn't an identifier, or is taken.
    """
    LOSSES.register(name, loss, module=loss.__module__)


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The training loss.

    Attributes:
        name: a key of `LOSSES`.
        label_smoothing: probability spread evenly over all classes (1512.00567, section 7); a
            scalar array where it varies with the seeds.
        bce_threshold: threshold of `binarize`, for the binary cross-entropies; 0 keeps the targets.

    Raises:
        ConfigError: unknown name.
    """

    name: str = "softmax"
    label_smoothing: float | Float[Array, ""] = 0.0
    bce_threshold: float = 0.0

    def __post_init__(self) -> None:
        LOSSES.find("loss is", self.name)

    def targets(self, labels: Int[Array, " n"], num_classes: int) -> Float[Array, "n k"]:
        """Return the class probabilities to train on, before any mixing of examples."""
        return optax.smooth_labels(jax.nn.one_hot(labels, num_classes), self.label_smoothing)

    def __call__(
        self, logits: Float[Array, "n k"], targets: Float[Array, "n k"]
    ) -> Float[Array, " n"]:
        """Return the loss of each example against targets that may have been mixed."""
        if self.bce_threshold:
            targets = binarize(targets, self.bce_threshold)
        return LOSSES[self.name](logits, targets)
