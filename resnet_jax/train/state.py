"""Everything that a run carries from step to step, and so everything that a checkpoint holds."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct, traverse_util

from resnet_jax.models.network import Network
from resnet_jax.models.presets import init_variables
from resnet_jax.parallel.mesh import place

MOST_NUMBERED = 16
"""How many steps that weren't finite a meter has the numbers of."""

_LARGEST = float(np.finfo(np.float32).max)


def finite_or_largest(value: float) -> float:
    """The value, or the largest float32 for one that overflowed: JSON has only finite numbers."""
    return value if math.isfinite(value) else _LARGEST


class Meter(struct.PyTreeNode):
    """Sums since the last log point, over steps or over examples, of steps that were finite.

    Scalars of float32, but for the last two: int32, and int32 [MOST_NUMBERED].
    """

    steps: jax.Array
    examples: jax.Array
    loss: jax.Array
    top1: jax.Array
    grad_norm: jax.Array  # of each step, before clipping
    nonfinite: jax.Array  # how many steps weren't
    nonfinite_steps: jax.Array  # the numbers of the first of those, from 0

    @classmethod
    def zero(cls) -> "Meter":
        """An empty meter."""
        sums = ("steps", "examples", "loss", "top1", "grad_norm")
        return cls(
            **{name: jnp.zeros((), jnp.float32) for name in sums},
            nonfinite=jnp.zeros((), jnp.int32),
            nonfinite_steps=jnp.zeros(MOST_NUMBERED, jnp.int32),
        )

    def add(
        self, step: jax.Array, *, finite: jax.Array, examples: int, **sums: jax.Array
    ) -> "Meter":
        """Count step number `step`, with its sums "loss", "top1" and "grad_norm"."""
        sums |= {"steps": jnp.float32(1), "examples": jnp.float32(examples)}
        added = {k: getattr(self, k) + jnp.where(finite, more, 0) for k, more in sums.items()}
        place = jnp.where(finite, MOST_NUMBERED, self.nonfinite)  # past the end nothing is set
        return self.replace(
            **added,
            nonfinite=self.nonfinite + (1 - finite.astype(jnp.int32)),
            nonfinite_steps=self.nonfinite_steps.at[place].set(step, mode="drop"),
        )

    def means(self) -> dict[str, float]:
        """Means over the examples, and of the norm over the steps; there must be some.

        Where a sum has overflowed, though all of its terms are finite, the mean is the largest
        float32.
        """
        return {
            "loss": finite_or_largest(float(self.loss / self.examples)),
            "top1": float(self.top1 / self.examples),
            "grad_norm": finite_or_largest(float(self.grad_norm / self.steps)),
        }


def numbered(meters: Sequence[Meter]) -> list[tuple[int, int]]:
    """(Number of the meter, step) of steps that weren't finite, as far as they have numbers."""
    return [
        (number, int(step))
        for number, meter in enumerate(meters)
        for step in meter.nonfinite_steps[: int(meter.nonfinite)]
    ]


class TrainState(struct.PyTreeNode):
    """The state of training.

    Attributes:
        step: steps done, int32; with the batch size it is also the position in the data.
        params: float32 master parameters.
        batch_stats: running means and variances; {} without batch normalisation.
        opt_state: state of the optax transformation.
        ema: exponential moving averages {"params", "batch_stats"}, or None.
        key: the run's random key as raw data, from which augmentation is derived.
        meter: sums since the last log point.
        normalization: {"mean", "std"} of the training images, so that a checkpoint alone
            can classify a new image.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    key: jax.Array
    meter: Meter
    normalization: dict[str, jax.Array]

    def moved_to(self, step: int) -> "TrainState":
        """The same state as if `step` steps were done: data and learning rate go on from there."""

        def at_step(leaf: jax.Array) -> jax.Array:
            return place(np.full(leaf.shape, step, leaf.dtype), leaf.sharding)

        return self.replace(
            step=at_step(self.step),
            opt_state=jax.tree.map(
                lambda leaf: at_step(leaf) if counts(leaf) else leaf, self.opt_state
            ),
        )

    def variables(self, *, ema: bool = False) -> dict[str, Any]:
        """The variables for `model.apply`: the raw ones, or their moving averages."""
        if ema:
            return dict(self.ema)
        return {"params": self.params, "batch_stats": self.batch_stats}


def counts(leaf: jax.Array) -> bool:
    """Whether a part of an optimiser's state is a number of steps."""
    return jnp.issubdtype(leaf.dtype, jnp.integer)


def init_state(
    model: Network,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    image_shape: tuple[int, int, int],
    normalization: dict[str, Any],
    with_ema: bool,
    pretrained: dict[str, Any] | None = None,
) -> TrainState:
    """Make the state before the first step; a pure function of the seed and of `pretrained`.

    Args:
        model: a linen module.
        optimizer: an optax transformation.
        seed: of the run.
        image_shape: (h, w, c).
        normalization: {"mean", "std"} of the training images.
        with_ema: keep moving averages, beginning at the initial values.
        pretrained: variables that take the place of those drawn; not necessarily of all.
    """
    init_key, run_key = jax.random.split(jax.random.key(seed))
    variables = init_variables(model, init_key, image_shape)
    if pretrained:
        drawn, given = (traverse_util.flatten_dict(tree) for tree in (variables, pretrained))
        replaced = {path: jnp.asarray(leaf) for path, leaf in given.items()}
        variables = traverse_util.unflatten_dict(drawn | replaced)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(variables["params"]),
        # A copy, because the step donates its input and must not be given one buffer twice.
        ema=jax.tree.map(jnp.copy, {"batch_stats": {}} | dict(variables)) if with_ema else None,
        key=jax.random.key_data(run_key),
        meter=Meter.zero(),
        normalization=jax.tree.map(jnp.asarray, normalization),
    )
