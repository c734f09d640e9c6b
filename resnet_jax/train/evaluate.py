"""Inference, and exact evaluation: every example of a split counts once, which is asserted."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8

from resnet_jax.data.datasets import ImageSet
from resnet_jax.data.images.normalization import normalize
from resnet_jax.parallel.mesh import batch_sharding, put_global, replicated
from resnet_jax.parallel.sharding import state_shardings
from resnet_jax.parallel.shards import FixedShards
from resnet_jax.train.metrics import RESERVED, finite_or_largest, masked_sums, with_spread

_RESIDENT_BYTES = 2**30
"""The most bytes of a split's images per device that stay on the device between evaluations."""

_CHUNK_BYTES = 2**28
"""Bytes of images per device that are sent at a time if the split doesn't stay on the devices."""

Apply = Callable[[Any, Float[Array, "n h w c"]], Any]
"""From variables and normalised images to logits [n, k]: the `apply` of a network, for example."""


def predict_logits(
    apply: Apply,
    variables: Any,
    images: UInt8[Array, "n h w c"],
    normalization: Any,
    *,
    mirrored: bool = False,
) -> Float[Array, "n k"]:
    """The logits of images as a network takes them from files.

    Args:
        apply: from variables and normalised images to logits.
        variables: its first argument.
        images: of the shape that the network takes; uint8, or float32 if normalised already.
        normalization: {"mean", "std"} in grey levels; None if `images` are normalised already.
        mirrored: return the mean of the logits of each image and of its mirror image.

    Returns:
        Logits of the type that `apply` returns: float32 of the networks of this package, whatever
        their `dtype`. `apply` takes float32 images.
    """
    inputs = images if normalization is None else normalize(images, normalization)
    logits = apply(variables, inputs)
    if mirrored:
        logits = (logits + apply(variables, inputs[:, :, ::-1])) / 2
    return logits


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The metrics of a network on one split.

    Attributes:
        examples: the number of examples, which is that of the split.
        metrics: the mean over the examples of each metric in `metrics.METRICS` and of those that
            `config.metrics` names. With several seeds, the mean over the seeds.
        confusion: int64 [true class, predicted class] counts, summed over the seeds; None if the
            metrics were read from the record of a run.
        seeds: the evaluation of each seed, if there are several.
    """

    examples: int
    metrics: Mapping[str, float]
    confusion: Int[np.ndarray, "k k"] | None
    seeds: tuple["Evaluation", ...] = ()

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats, without label smoothing."""
        return self.metrics["loss"]

    @property
    def top1(self) -> float:
        """Share of examples in 0…1 whose label has the largest logit; see `metrics.rank`."""
        return self.metrics["top1"]

    @property
    def top5(self) -> float:
        """Share of examples in 0…1 whose label is among the five largest logits."""
        return self.metrics["top5"]

    def scalars(self) -> dict[str, Any]:
        """The record for logs: "examples" and the metrics; with several seeds `with_spread`."""
        if self.seeds:
            return {"examples": self.examples, **with_spread([s.metrics for s in self.seeds])}
        return {"examples": self.examples, **self.metrics}

    @classmethod
    def from_scalars(cls, scalars: Mapping[str, Any]) -> "Evaluation":
        """The evaluation whose `scalars` these are, without the confusion matrix."""
        examples, values = scalars["examples"], scalars.get("seeds", {})
        names = list(dict.fromkeys(("loss", "top1", "top5", *scalars)))
        names = [name for name in names if name not in RESERVED]
        of_seeds = zip(*(values[name] for name in names), strict=True) if values else ()
        return cls(
            examples,
            {name: float(scalars[name]) for name in names},
            confusion=None,
            seeds=tuple(cls(examples, dict(zip(names, of, strict=True)), None) for of in of_seeds),
        )


def bounded(scores: Evaluation) -> Evaluation:
    """The evaluation of several seeds with non-finite metrics replaced by the largest float32."""
    return mean_over_seeds(
        [
            dataclasses.replace(
                of_seed, metrics={k: finite_or_largest(v) for k, v in of_seed.metrics.items()}
            )
            for of_seed in scores.seeds
        ]
    )


class Evaluator:
    """Evaluates variables on one split, which stays on the devices unless it is large."""

    def __init__(
        self,
        apply: Apply,
        data: ImageSet,
        *,
        batch_size: int,
        mesh: Mesh,
        metrics: Sequence[str] = (),
        shards: FixedShards | None = None,
    ) -> None:
        """Lay the split out in batches of equal size, with a mask for the padding.

        Args:
            apply: from variables and normalised images to logits, such as `model.apply`.
            data: the split.
            batch_size: examples per batch, over all devices. It is rounded up to a multiple of
                the number of devices; the metrics don't depend on it.
            mesh: the devices.
            metrics: names of registered metrics to score beside `METRICS`.
            shards: fixed shards of a batch, whose sums have the same bits on any mesh. The batch
                size is rounded up to a multiple of their number instead.
        """
        self._apply, self._data, self._mesh, self._metrics = apply, data, mesh, metrics
        self._shards = shards
        shape = data.images.shape[1:]
        self._chunks = chunks_of(len(data), shape, batch_size=batch_size, mesh=mesh, shards=shards)
        self._resident = self._chunk(0) if self._chunks[0] == 1 else None
        self._programs: dict[bool, jax.stages.Wrapped] = {}

    def __call__(self, variables: Any, normalization: Any, *, mirrored: bool = False) -> Evaluation:
        """Evaluate `variables` on the whole split; the arguments are as in `predict_logits`.

        Raises:
            AssertionError: not every example was counted exactly once.
        """
        if mirrored not in self._programs:
            self._programs[mirrored] = make_score(
                self._apply,
                self._mesh,
                mirrored=mirrored,
                metrics=self._metrics,
                shards=self._shards,
            )
        score, constants = self._programs[mirrored], (variables, normalization)
        if self._resident:
            sums = score(*constants, self._resident, None)
        else:
            sums = self._sums_of_chunks(score, constants)
        sums = jax.device_get(sums)
        counted = int(sums["examples"])
        if counted != len(self._data):
            raise AssertionError(f"scored {counted} examples of a split of {len(self._data)}")
        return Evaluation(
            examples=counted,
            metrics={name: total.item() / counted for name, total in sums["metrics"].items()},
            confusion=sums["confusion"].astype(np.int64),
        )

    def _sums_of_chunks(self, score: jax.stages.Wrapped, constants: tuple[Any, Any]) -> Any:
        """The sums over all chunks. The next chunk is sent while one is evaluated."""
        chunk = self._chunk(0)
        shapes = score.trace(*constants, chunk, None).out_info
        # The first chunk gets sums, too: with None it would need a program of its own.
        zeros = jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), shapes)
        sums = put_global(zeros, replicated(self._mesh))
        for number in range(self._chunks[0]):
            before, sums = sums, score(*constants, chunk, sums)
            if number + 1 < self._chunks[0]:
                chunk = self._chunk(number + 1)
            # Keeps at most two chunks on the devices.
            jax.block_until_ready(before)
        return sums

    def _chunk(self, number: int) -> Any:
        """Images, labels and mask of a chunk, [batches, examples per batch, …], on the mesh."""
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
        return put_global(arrays, batch_sharding(self._mesh, axis=1))


def mean_over_seeds(scores: Sequence[Evaluation]) -> Evaluation:
    """The evaluation of several seeds: mean metrics, the sum of the confusion matrices."""
    means = {
        name: statistics.fmean(score.metrics[name] for score in scores)
        for name in scores[0].metrics
    }
    confusions = [score.confusion for score in scores if score.confusion is not None]
    confusion = np.sum(confusions, axis=0)
    return Evaluation(scores[0].examples, means, confusion=confusion, seeds=tuple(scores))


def chunks_of(
    examples: int,
    image_shape: Sequence[int],
    *,
    batch_size: int,
    mesh: Mesh,
    shards: FixedShards | None = None,
) -> tuple[int, int, int]:
    """(Chunks, batches per chunk, examples per batch) in which a split is evaluated.

    There is a single chunk if the split is small enough to stay on the devices.
    """
    parts = shards.count if shards else mesh.size
    batches, batch_size = batches_of(examples, batch_size=batch_size, parts=parts)
    bytes_of_batch = batch_size // mesh.size * math.prod(image_shape)
    if batches * bytes_of_batch <= _RESIDENT_BYTES:
        return 1, batches, batch_size
    per_chunk = max(1, _CHUNK_BYTES // bytes_of_batch)
    chunks = -(-batches // per_chunk)
    return chunks, -(-batches // chunks), batch_size


def batches_of(examples: int, *, batch_size: int, parts: int) -> tuple[int, int]:
    """(Batches, examples per batch) in which a split is evaluated.

    Args:
        examples: of the split.
        batch_size: is rounded up to a multiple of `parts`.
        parts: of equal size, into which a batch is split: devices or fixed shards.
    """
    batch_size = -(-min(batch_size, examples) // parts) * parts
    return -(-examples // batch_size), batch_size


def make_score(
    apply: Apply,
    mesh: Mesh,
    *,
    mirrored: bool = False,
    metrics: Sequence[str] = (),
    shards: FixedShards | None = None,
) -> jax.stages.Wrapped:
    """Make the jitted evaluation of a split: `score(variables, normalization, batches, earlier)`.

    `batches` are images, labels and masks, [batches, examples per batch, …], split over the mesh
    along the second dimension. The result has sums over the examples whose mask is true:
    "examples", "metrics" by name, "confusion" [k, k]. They are added to the sums `earlier` of
    other batches, or to zero for None.

    Args:
        apply, mirrored: as in `predict_logits`.
        mesh: the devices.
        metrics, shards: as in `Evaluator`.
    """

    def score(variables: Any, normalization: Any, batches: Any, earlier: Any) -> dict[str, Any]:
        def sums_of(batch: Any, _: Any = None) -> dict[str, Any]:
            images, labels, mask = batch
            logits = predict_logits(apply, variables, images, normalization, mirrored=mirrored)
            classes, ones = logits.shape[-1], mask.astype(jnp.int32)
            confusion = jnp.zeros((classes, classes), jnp.int32)
            return {
                "examples": ones.sum(),
                "metrics": masked_sums(logits, labels, mask, metrics),
                "confusion": confusion.at[labels, logits.argmax(axis=-1)].add(ones),
            }

        def body(sums: Any, batch: Any) -> tuple[Any, None]:
            more = shards.sum(sums_of, batch) if shards else sums_of(batch)
            return jax.tree.map(jnp.add, sums, more), None

        first = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), batches)
        shapes = jax.eval_shape(sums_of, first)
        zero = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        return jax.lax.scan(body, zero if earlier is None else earlier, batches)[0]

    def on_each_device(variables: Any, *rest: Any) -> dict[str, Any]:
        assert shards
        shardings = state_shardings(variables, mesh)

        def gathered(variables: Any, *rest: Any) -> dict[str, Any]:
            return score(shards.gather(variables, shardings), *rest)

        mapped = shards.map_devices(
            gathered, in_shardings=(shardings, whole, data, whole), out_shardings=whole
        )
        return mapped(variables, *rest)

    whole = replicated(mesh)
    # No sharding is imposed on the variables: kernels may be split, and are gathered where used.
    data = batch_sharding(mesh, axis=1)
    return jax.jit(
        on_each_device if shards else score,
        in_shardings=(None, whole, data, whole),
        out_shardings=whole,
        compiler_options=shards.compiler_options if shards else None,
    )


def abstract_batches(
    batches: int, batch_size: int, image_shape: tuple[int, int, int], mesh: Mesh
) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The shapes of the `batches` that the function of `make_score` takes."""
    shape, layout = (batches, batch_size), batch_sharding(mesh, axis=1)
    return (
        jax.ShapeDtypeStruct((*shape, *image_shape), jnp.uint8, sharding=layout),
        jax.ShapeDtypeStruct(shape, jnp.int32, sharding=layout),
        jax.ShapeDtypeStruct(shape, jnp.bool_, sharding=layout),
    )
