"""Exact evaluation: every example of a split counts once, and the count is asserted."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from resnet_jax.data.augment import normalize
from resnet_jax.data.sources import ImageSet
from resnet_jax.models.presets import Network
from resnet_jax.parallel.mesh import place, replicated, split
from resnet_jax.train.step import cross_entropy


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of a model on one split.

    Attributes:
        examples: how many were scored: all of the split.
        loss: mean cross-entropy in nats, without label smoothing.
        top1, top5: share of examples, in 0…1, whose label is the first, or among the first five,
            of the logits. Between equal logits the class with the lower number comes first; an
            example with a logit that isn't finite counts as wrong.
        confusion: int64 [true class, predicted class] counts.
    """

    examples: int
    loss: float
    top1: float
    top5: float
    confusion: Int[np.ndarray, "k k"]

    def scalars(self) -> dict[str, float]:
        """The scores without the confusion matrix, for logs."""
        return {
            "examples": self.examples,
            "loss": self.loss,
            "top1": self.top1,
            "top5": self.top5,
        }


class Evaluator:
    """Scores variables on a split that is kept on the devices, in one dispatch per call."""

    def __init__(self, model: Network, data: ImageSet, *, batch_size: int, mesh: Mesh) -> None:
        """Pad the split to whole batches, with a mask, and place it on the mesh.

        The scores don't depend on the size of the batch, which is rounded up to one that the
        mesh can share, and down to the size of the split.
        """
        self._examples = len(data)
        batches, batch_size = batches_of(len(data), batch_size=batch_size, mesh=mesh)
        padding = batches * batch_size - len(data)

        def padded(array: np.ndarray) -> np.ndarray:
            array = np.concatenate([array, np.zeros((padding, *array.shape[1:]), array.dtype)])
            return array.reshape(batches, batch_size, *array.shape[1:])

        arrays = padded(data.images), padded(data.labels), padded(np.ones(len(data), bool))
        self._batches = place(arrays, split(mesh, axis=1))
        self._score = make_score(model, mesh)

    def __call__(self, variables: Any, normalization: Any) -> Evaluation:
        """Score `variables` on the whole split.

        Raises:
            AssertionError: not every example was counted exactly once.
        """
        sums = jax.device_get(self._score(variables, normalization, self._batches))
        counted = int(sums["examples"])
        if counted != self._examples:
            raise AssertionError(f"scored {counted} examples of a split of {self._examples}")
        return Evaluation(
            examples=counted,
            loss=float(sums["loss"]) / counted,
            top1=int(sums["top1"]) / counted,
            top5=int(sums["top5"]) / counted,
            confusion=sums["confusion"].astype(np.int64),
        )


def batches_of(examples: int, *, batch_size: int, mesh: Mesh) -> tuple[int, int]:
    """How many batches of how many examples a split is scored in."""
    devices = mesh.size
    batch_size = -(-min(batch_size, examples) // devices) * devices
    return -(-examples // batch_size), batch_size


def make_score(model: Network, mesh: Mesh) -> jax.stages.Wrapped:
    """The jitted scores of a split: `score(variables, normalization, batches)`.

    `batches` are images, labels and masks, [batches, examples of each, …], split over the mesh
    along the second dimension. The result is summed over the examples whose mask is true.
    """

    def score(variables: Any, normalization: Any, batches: Any) -> dict[str, jax.Array]:
        def body(sums: Any, batch: Any) -> tuple[Any, None]:
            images, labels, mask = batch
            logits: Any = model.apply(variables, normalize(images, normalization))
            return jax.tree.map(jnp.add, sums, _sums(logits, labels, mask)), None

        zero = jax.tree.map(
            jnp.zeros_like,
            _sums(jnp.zeros((1, model.num_classes)), jnp.zeros(1, jnp.int32), jnp.zeros(1, bool)),
        )
        return jax.lax.scan(body, zero, batches)[0]

    whole = replicated(mesh)
    # The variables come as they lie: kernels may be split, and are gathered where they are used.
    return jax.jit(score, in_shardings=(None, whole, split(mesh, axis=1)), out_shardings=whole)


def abstract_batches(
    batches: int, batch_size: int, image_shape: tuple[int, int, int], mesh: Mesh
) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The shapes of what `make_score`'s function takes as `batches`."""
    shape, layout = (batches, batch_size), split(mesh, axis=1)
    return (
        jax.ShapeDtypeStruct((*shape, *image_shape), jnp.uint8, sharding=layout),
        jax.ShapeDtypeStruct(shape, jnp.int32, sharding=layout),
        jax.ShapeDtypeStruct(shape, jnp.bool_, sharding=layout),
    )


def _sums(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Sums over the unmasked examples of one batch; counts are integers and therefore exact."""
    classes = logits.shape[-1]
    of_label = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    before_label = jnp.arange(classes) < labels[:, None]
    # Ties are broken as argmax breaks them, or a network of equal logits would always be right.
    ahead = (logits > of_label) | ((logits == of_label) & before_label)
    # A NaN compares false with everything and would put its label first.
    rank = jnp.where(jnp.isfinite(logits).all(axis=-1), ahead.sum(axis=-1), classes)
    ones = mask.astype(jnp.int32)
    predicted = logits.argmax(axis=-1)
    confusion = jnp.zeros((classes, classes), jnp.int32).at[labels, predicted].add(ones)
    return {
        "examples": ones.sum(),
        "loss": jnp.where(mask, cross_entropy(logits, labels), 0.0).sum(),
        "top1": jnp.where(rank < 1, ones, 0).sum(),
        "top5": jnp.where(rank < 5, ones, 0).sum(),
        "confusion": confusion,
    }
