"""The metrics of training and of evaluation, in one table, and their sums over training steps.

A metric gives one value for each example of a batch. Training logs its mean over the examples since
the last log point, evaluation its mean over a split. Both read `METRICS`: a metric that is added to
the table appears in metrics.jsonl, in summary.json and in the reports made from them.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from resnet_jax.train.losses import cross_entropy
from resnet_jax.utils.registry import Registry

MAX_RECORDED_STEPS = 16
"""How many non-finite steps `TrainMetrics` records by number."""

RESERVED = frozenset(
    {"steps", "examples", "grad_norm", "nonfinite", "nonfinite_steps", "step", "epoch", "split"}
    | {"weights", "lr", "img_per_s", "wall_s", "data_wait", "batches", "std", "seeds", "test"}
)
"""Names that no metric can have: records and `TrainMetrics` have fields of these names."""

_LARGEST = float(np.finfo(np.float32).max)


def rank(logits: Float[Array, "n k"], labels: Int[Array, " n"]) -> Int[Array, " n"]:
    """How many classes precede the label when the classes are sorted by logit, largest first.

    Between equal logits the class with the lower number comes first, as in `argmax`; otherwise a
    network whose logits are all equal would always be right. If a logit isn't finite, the rank is
    max(k, 5), so that the example is wrong by top-1 and by top-5.
    """
    classes = logits.shape[-1]
    of_label = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    before_label = jnp.arange(classes) < labels[:, None]
    ahead = (logits > of_label) | ((logits == of_label) & before_label)
    # Comparisons with NaN are false, which would give the label rank 0.
    return jnp.where(jnp.isfinite(logits).all(axis=-1), ahead.sum(axis=-1), max(classes, 5))


def top_1(logits: Float[Array, "n k"], labels: Int[Array, " n"]) -> Bool[Array, " n"]:
    """Whether the label has the largest logit; see `rank`."""
    return rank(logits, labels) < 1


def top_5(logits: Float[Array, "n k"], labels: Int[Array, " n"]) -> Bool[Array, " n"]:
    """Whether the label is among the five largest logits; see `rank`."""
    return rank(logits, labels) < 5


Values = Callable[[Float[Array, "n k"], Int[Array, " n"]], Shaped[Array, " n"]]


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of logits.

    Attributes:
        values: from logits [n, k] (float32) and labels [n] (int32) to one value per example [n]:
            bool, integer or float32. Runs under `jit`.
        in_training: whether training logs the metric too. The labels of training are those of the
            images before mixup or CutMix. Checkpoints hold the sums of these metrics, so that a
            run resumes only with the metrics with which it began.
    """

    values: Values
    in_training: bool = True


METRICS: dict[str, Metric] = {
    # As "loss", training logs what it minimises: smoothed, mixed, distilled.
    "loss": Metric(cross_entropy, in_training=False),
    "top1": Metric(top_1),
    "top5": Metric(top_5, in_training=False),
}
"""By the name in records. A name is an identifier that isn't in `RESERVED`."""

REGISTERED: Registry[Metric] = Registry("metric", {}, reserved=(*METRICS, *RESERVED))
"""Metrics of users, of which a run has those that `config.metrics` names."""


def register_metric(name: str, values: Values, *, in_training: bool = False) -> None:
    """Add a metric, for `config.metrics`.

    Args:
        name: an identifier.
        values: the function of the metric; see `Metric`.
        in_training: whether training logs the metric too.

    Raises:
        ConfigError: the name isn't an identifier, or is taken.
    """
    REGISTERED.register(name, Metric(values, in_training), module=values.__module__)


def training_metrics(registered: Sequence[str] = ()) -> list[str]:
    """Names of the metrics that training logs beside its loss."""
    return [name for name, metric in _table(registered).items() if metric.in_training]


def _table(registered: Sequence[str]) -> dict[str, Metric]:
    """The metrics of a run whose `config.metrics` is `registered`."""
    return METRICS | {name: REGISTERED[name] for name in registered}


def training_sums(
    logits: Float[Array, "n k"], labels: Int[Array, " n"], names: Iterable[str]
) -> dict[str, Float[Array, ""]]:
    """Sums over a batch of the metrics with these names, float32."""
    table = METRICS | REGISTERED
    return {name: table[name].values(logits, labels).astype(jnp.float32).sum() for name in names}


def masked_sums(
    logits: Float[Array, "n k"],
    labels: Int[Array, " n"],
    mask: Bool[Array, " n"],
    registered: Sequence[str] = (),
) -> dict[str, Shaped[Array, ""]]:
    """Sums of all metrics over the examples whose mask is true.

    Booleans and integers are summed as integers, and therefore exactly.
    """
    return {
        name: jnp.where(mask, metric.values(logits, labels), 0).sum()
        for name, metric in _table(registered).items()
    }


def finite_or_largest(value: float) -> float:
    """The value, or the largest float32 if it isn't finite: JSON has only finite numbers."""
    return value if math.isfinite(value) else _LARGEST


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class TrainMetrics:
    """Sums since the last log point over the steps whose loss and gradient were finite.

    Checkpoints hold the sums of `sums` beside the other fields, not in a level of their own.

    Attributes:
        steps, examples: how many, float32.
        loss: the training loss, summed over the examples, float32.
        grad_norm: the norm of the gradient before clipping, summed over the steps, float32.
        nonfinite: how many steps weren't finite, int32.
        nonfinite_steps: the numbers of the first non-finite steps, from 0; int32
            [MAX_RECORDED_STEPS].
        sums: the sum over the examples of each of `training_metrics`, float32.
    """

    steps: jax.Array
    examples: jax.Array
    loss: jax.Array
    grad_norm: jax.Array
    nonfinite: jax.Array
    nonfinite_steps: jax.Array
    sums: dict[str, jax.Array]

    @classmethod
    def zero(cls, registered: Sequence[str] = ()) -> "TrainMetrics":
        """Sums over no steps, of a run whose `config.metrics` is `registered`."""
        return cls(
            **{name: jnp.zeros((), jnp.float32) for name in _FLOATS},
            nonfinite=jnp.zeros((), jnp.int32),
            nonfinite_steps=jnp.zeros(MAX_RECORDED_STEPS, jnp.int32),
            sums={name: jnp.zeros((), jnp.float32) for name in training_metrics(registered)},
        )

    def add(
        self,
        step: jax.Array,
        *,
        finite: jax.Array,
        examples: int,
        loss: jax.Array,
        grad_norm: jax.Array,
        sums: Mapping[str, jax.Array],
    ) -> "TrainMetrics":
        """Add step number `step`, or only its number if it isn't `finite`."""

        def plus(total: jax.Array, more: Any) -> jax.Array:
            return total + jnp.where(finite, more, 0)

        # Indices past the end are dropped.
        place = jnp.where(finite, MAX_RECORDED_STEPS, self.nonfinite)
        return TrainMetrics(
            steps=plus(self.steps, jnp.float32(1)),
            examples=plus(self.examples, jnp.float32(examples)),
            loss=plus(self.loss, loss),
            grad_norm=plus(self.grad_norm, grad_norm),
            nonfinite=self.nonfinite + (1 - finite.astype(jnp.int32)),
            nonfinite_steps=self.nonfinite_steps.at[place].set(step, mode="drop"),
            sums={name: plus(total, sums[name]) for name, total in self.sums.items()},
        )

    def means(self) -> dict[str, float]:
        """The means over the examples, and of the norm over the steps; there must be some.

        A mean whose sum has overflowed is the largest float32.
        """
        means = {
            "loss": self.loss / self.examples,
            **{name: total / self.examples for name, total in self.sums.items()},
            "grad_norm": self.grad_norm / self.steps,
        }
        return {name: finite_or_largest(float(mean)) for name, mean in means.items()}

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], tuple[str, ...]]:
        """The fields and the sums by name, on one level."""
        fields = {name: getattr(self, name) for name in _FIELDS}
        leaves = [(jax.tree_util.DictKey(k), v) for k, v in (fields | self.sums).items()]
        return leaves, tuple(self.sums)

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], leaves: Sequence[Any]) -> "TrainMetrics":
        """The inverse of `tree_flatten_with_keys`."""
        fields = dict(zip(_FIELDS, leaves, strict=False))
        return cls(**fields, sums=dict(zip(names, leaves[len(_FIELDS) :], strict=True)))


_FLOATS = ("steps", "examples", "loss", "grad_norm")
_FIELDS = (*_FLOATS, "nonfinite", "nonfinite_steps")


def nonfinite_steps(metrics: Sequence[TrainMetrics]) -> list[tuple[int, int]]:
    """(Index of the seed, step) of the non-finite steps that the metrics of each seed record."""
    return [
        (index, int(step))
        for index, of_seed in enumerate(metrics)
        for step in of_seed.nonfinite_steps[: int(of_seed.nonfinite)]
    ]


def with_spread(per_seed: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """A record of the metrics of several seeds.

    Returns:
        The means over the seeds by name; under "std" the standard deviations (n - 1) by name, if
        there are two seeds or more; under "seeds" the values of each seed by name.
    """
    values = {name: [metrics[name] for metrics in per_seed] for name in per_seed[0]}
    record: dict[str, Any] = {name: statistics.fmean(of) for name, of in values.items()}
    if len(per_seed) > 1:
        record["std"] = {name: statistics.stdev(of) for name, of in values.items()}
    return record | {"seeds": values}
