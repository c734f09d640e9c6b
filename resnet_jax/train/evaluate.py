"""Exact evaluation: every example of a split counts once, and the count is asserted."""

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from resnet_jax.data.augment.basic import normalize
from resnet_jax.data.datasets import ImageSet
from resnet_jax.models.network import Network
from resnet_jax.parallel.mesh import place, replicated, split
from resnet_jax.train.state import finite_or_largest
from resnet_jax.train.step import cross_entropy

_RESIDENT_BYTES = 2**30
"""Of images of a split, that each device keeps."""

_CHUNK_BYTES = 2**28  # of images, that are sent to each device at a time


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of a model on one split.

    Attributes:
        examples: how many were scored: all of the split.
        loss: mean cross-entropy in nats, without label smoothing.
        top1, top5: share of examples, in 0…1, whose label is the first, or among the first five,
            of the logits. Between equal logits the class with the lower number comes first; an
            example with a logit that isn't finite counts as wrong.
        confusion: int64 [true class, predicted class] counts; None where the scores were read from
            the record of a run.
        seeds: the scores of each seed, if these are means over several.
    """

    examples: int
    loss: float
    top1: float
    top5: float
    confusion: Int[np.ndarray, "k k"] | None
    seeds: tuple["Evaluation", ...] = ()

    def scalars(self) -> dict[str, Any]:
        """The scores without the confusion matrix, for logs; see `with_spread` of several seeds."""
        names = ("loss", "top1", "top5")
        if self.seeds:
            of_seeds = [{name: getattr(one, name) for name in names} for one in self.seeds]
            return {"examples": self.examples, **with_spread(of_seeds)}
        return {"examples": self.examples, **{name: getattr(self, name) for name in names}}

    @classmethod
    def from_scalars(cls, scalars: Mapping[str, Any]) -> "Evaluation":
        """The scores of which these are the `scalars`, without the confusion matrix."""
        names = ("loss", "top1", "top5")
        examples, values = scalars["examples"], scalars.get("seeds", {})
        of_seeds = zip(*(values[name] for name in names), strict=True) if values else ()
        return cls(
            examples,
            **{name: scalars[name] for name in names},
            confusion=None,
            seeds=tuple(cls(examples, loss, top1, top5, None) for loss, top1, top5 in of_seeds),
        )


def bounded(scores: Evaluation) -> Evaluation:
    """The same, where losses of single seeds that overflow are the largest of float32."""
    return mean_over_seeds(
        [dataclasses.replace(one, loss=finite_or_largest(one.loss)) for one in scores.seeds]
    )


def with_spread(per_seed: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Means over seeds by name; in "std" their deviations (n - 1), in "seeds" the values."""
    values = {name: [one[name] for one in per_seed] for name in per_seed[0]}
    record: dict[str, Any] = {name: statistics.fmean(of) for name, of in values.items()}
    if len(per_seed) > 1:
        record["std"] = {name: statistics.stdev(of) for name, of in values.items()}
    return record | {"seeds": values}


class Evaluator:
    """Scores variables on a split, which is kept on the devices if it isn't too large for that."""

    def __init__(self, model: Network, data: ImageSet, *, batch_size: int, mesh: Mesh) -> None:
        """Lay the split out in whole batches, with a mask.

        The scores don't depend on the size of the batch, which is rounded up to one that the
        mesh can share, and down to the size of the split.
        """
        self._data, self._mesh = data, mesh
        shape = data.images.shape[1:]
        self._chunks = chunks_of(len(data), shape, batch_size=batch_size, mesh=mesh)
        self._resident = self._chunk(0) if self._chunks[0] == 1 else None
        self._model = model
        self._scores: dict[bool, jax.stages.Wrapped] = {}
        self._add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b))

    def __call__(self, variables: Any, normalization: Any, *, mirrored: bool = False) -> Evaluation:
        """Score `variables` on the whole split; see `make_score` for `mirrored`.

        Raises:
            AssertionError: not every example was counted exactly once.
        """
        if mirrored not in self._scores:
            self._scores[mirrored] = make_score(self._model, self._mesh, mirrored=mirrored)
        score = functools.partial(self._scores[mirrored], variables, normalization)
        sums = score(self._resident) if self._resident else self._sums_of_chunks(score)
        sums = jax.device_get(sums)
        counted = int(sums["examples"])
        if counted != len(self._data):
            raise AssertionError(f"scored {counted} examples of a split of {len(self._data)}")
        return Evaluation(
            examples=counted,
            loss=float(sums["loss"]) / counted,
            top1=int(sums["top1"]) / counted,
            top5=int(sums["top5"]) / counted,
            confusion=sums["confusion"].astype(np.int64),
        )

    def _sums_of_chunks(self, score: Callable[[Any], dict[str, jax.Array]]) -> Any:
        """The sums of chunk after chunk; the next one is sent while one is scored."""
        sums, chunk = None, self._chunk(0)
        for number in range(self._chunks[0]):
            done = score(chunk)
            before, sums = sums, self._add(sums, done) if sums else done
            if number + 1 < self._chunks[0]:
                chunk = self._chunk(number + 1)
            # No more than two of them lie on the devices.
            jax.block_until_ready(before)
        assert sums
        return sums

    def _chunk(self, number: int) -> Any:
        """Images, labels and mask of a chunk, [batches, examples of each, …], on the mesh."""
        _, batches, size = self._chunks
        start = number * batches * size
        stop = min(start + batches * size, len(self._data))
        padding = batches * size - (stop - start)

        def padded(array: np.ndarray) -> np.ndarray:
            if padding:
                zeros = np.zeros((padding, *array.shape[1:]), array.dtype)
                array = np.concatenate([array, zeros])
            return array.reshape(batches, size, *array.shape[1:])

        images, labels = self._data.images[start:stop], self._data.labels[start:stop]
        arrays = padded(images), padded(labels), padded(np.ones(stop - start, bool))
        return place(arrays, split(self._mesh, axis=1))


class SeedEvaluator:
    """Scores the variables of several seeds on a split, one after the other."""

    def __init__(self, evaluator: Evaluator, *, seeds: int, mesh: Mesh) -> None:
        """Score `seeds` of them by the evaluator of a single run."""
        self._evaluator, self._seeds = evaluator, seeds

        def entry(tree: Any, number: jax.Array) -> Any:
            return jax.tree.map(lambda leaf: leaf[number], tree)

        self._entry = jax.jit(entry, out_shardings=replicated(mesh))

    def __call__(self, variables: Any, normalization: Any) -> Evaluation:
        """See `mean_over_seeds`.

        Raises:
            AssertionError: as `Evaluator`.
        """
        return mean_over_seeds(
            [
                self._evaluator(*self._entry((variables, normalization), number))
                for number in range(self._seeds)
            ]
        )


def mean_over_seeds(scores: Sequence[Evaluation]) -> Evaluation:
    """Mean scores, with those of each seed beside them; their confusions are added up."""
    means = {
        name: statistics.fmean(getattr(score, name) for score in scores)
        for name in ("loss", "top1", "top5")
    }
    confusions = [score.confusion for score in scores if score.confusion is not None]
    confusion = np.sum(confusions, axis=0)
    return Evaluation(scores[0].examples, **means, confusion=confusion, seeds=tuple(scores))


def chunks_of(
    examples: int, image_shape: Sequence[int], *, batch_size: int, mesh: Mesh
) -> tuple[int, int, int]:
    """In how many chunks, of how many batches, of how many examples a split is scored.

    A split of which each device has little is one chunk.
    """
    batches, batch_size = batches_of(examples, batch_size=batch_size, mesh=mesh)
    bytes_of_batch = batch_size // mesh.size * math.prod(image_shape)
    if batches * bytes_of_batch <= _RESIDENT_BYTES:
        return 1, batches, batch_size
    per_chunk = max(1, _CHUNK_BYTES // bytes_of_batch)
    chunks = -(-batches // per_chunk)
    return chunks, -(-batches // chunks), batch_size


def batches_of(examples: int, *, batch_size: int, mesh: Mesh) -> tuple[int, int]:
    """How many batches of how many examples a split is scored in."""
    devices = mesh.size
    batch_size = -(-min(batch_size, examples) // devices) * devices
    return -(-examples // batch_size), batch_size


def make_score(model: Network, mesh: Mesh, *, mirrored: bool = False) -> jax.stages.Wrapped:
    """The jitted scores of a split: `score(variables, normalization, batches)`.

    With `mirrored` the logits are means of those of an image and of its mirror image.

    `batches` are images, labels and masks, [batches, examples of each, …], split over the mesh
    along the second dimension. The result is summed over the examples whose mask is true.
    """

    def score(variables: Any, normalization: Any, batches: Any) -> dict[str, jax.Array]:
        def body(sums: Any, batch: Any) -> tuple[Any, None]:
            images, labels, mask = batch
            inputs = normalize(images, normalization)
            logits: Any = model.apply(variables, inputs)
            if mirrored:
                logits = (logits + model.apply(variables, inputs[:, :, ::-1])) / 2
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
    last = max(classes, 5)  # not among the first five either, where there are fewer classes
    rank = jnp.where(jnp.isfinite(logits).all(axis=-1), ahead.sum(axis=-1), last)
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
