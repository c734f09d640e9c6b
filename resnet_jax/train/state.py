"""Everything that a run carries from step to step, and so everything that a checkpoint holds."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from resnet_jax.models.presets import Network, init_variables


class Meter(struct.PyTreeNode):
    """Float32 sums since the last log point, over steps or over examples; all are scalars."""

    steps: jax.Array
    examples: jax.Array
    loss: jax.Array
    top1: jax.Array
    grad_norm: jax.Array  # of each step, before clipping

    @classmethod
    def zero(cls) -> "Meter":
        """An empty meter."""
        return cls(*(jnp.zeros((), jnp.float32) for _ in range(5)))


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

    def variables(self, *, ema: bool = False) -> dict[str, Any]:
        """The variables for `model.apply`: the raw ones, or their moving averages."""
        if ema:
            return dict(self.ema)
        return {"params": self.params, "batch_stats": self.batch_stats}


def init_state(
    model: Network,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    image_shape: tuple[int, int, int],
    normalization: dict[str, Any],
    with_ema: bool,
) -> TrainState:
    """Make the state before the first step; a pure function of the seed.

    Args:
        model: a linen module.
        optimizer: an optax transformation.
        seed: of the run.
        image_shape: (h, w, c).
        normalization: {"mean", "std"} of the training images.
        with_ema: keep moving averages, beginning at the initial values.
    """
    init_key, run_key = jax.random.split(jax.random.key(seed))
    variables = init_variables(model, init_key, image_shape)
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
