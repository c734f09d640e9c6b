"""The train state: everything that a run carries from step to step and a checkpoint holds."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct, traverse_util

from resnet_jax.models.network import Network
from resnet_jax.models.presets import init_variables
from resnet_jax.parallel.mesh import put_global
from resnet_jax.train.metrics import TrainMetrics

STEP_COUNTS = frozenset({"count", "step_count", "step"})
"""Names of the fields that count steps in the states of optax's transformations."""


class TrainState(struct.PyTreeNode):
    """The state of training.

    Attributes:
        step: steps done, int32; with the batch size also the position in the data.
        params: float32 master parameters.
        batch_stats: running means and variances; {} without batch normalisation.
        opt_state: state of the optax transformation.
        ema: exponential moving averages {"params", "batch_stats"}, or None.
        key: raw data of the run's random key, for augmentation and dropout.
        meter: metrics since the last log point; checkpoints have this name.
        normalization: {"mean", "std"} of the training images, in grey levels, so that a checkpoint
            alone can classify a new image.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    key: jax.Array
    meter: TrainMetrics
    normalization: dict[str, jax.Array]

    def moved_to(self, step: int) -> "TrainState":
        """Return the state with all step counts set to `step`, for the data and the schedule.

        Other integers of the optimiser's state keep their values; see `is_step_count`.
        """

        def at_step(leaf: jax.Array) -> jax.Array:
            return put_global(np.full(leaf.shape, step, leaf.dtype), leaf.sharding)

        return self.replace(
            step=at_step(self.step),
            opt_state=jax.tree_util.tree_map_with_path(
                lambda path, leaf: at_step(leaf) if is_step_count(path, leaf) else leaf,
                self.opt_state,
            ),
        )

    def variables(self, *, ema: bool = False) -> dict[str, Any]:
        """Return the variables for `model.apply`, or their moving averages."""
        if ema:
            return dict(self.ema)
        return {"params": self.params, "batch_stats": self.batch_stats}


def is_step_count(path: tuple[Any, ...], leaf: jax.Array) -> bool:
    """Return whether an array of an optimiser's state is a step count.

    It is an integer whose field or key is in `STEP_COUNTS`. Other integers count something else,
    such as the updates in a row that `optax.apply_if_finite` has left out.

    Args:
        path: of the array in the state, as of `jax.tree_util.tree_map_with_path`.
        leaf: the array.
    """
    last = path[-1] if path else None
    name = getattr(last, "name", getattr(last, "key", None))  # of a field, or of a dictionary
    return name in STEP_COUNTS and jnp.issubdtype(leaf.dtype, jnp.integer)


def init_state(
    model: Network,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    image_shape: tuple[int, int, int],
    normalization: dict[str, Any],
    with_ema: bool,
    metrics: Sequence[str] = (),
    pretrained: dict[str, Any] | None = None,
) -> TrainState:
    """Return the state before the first step, a pure function of the arguments.

    Args:
        model: linen module.
        optimizer: optax transformation.
        seed: seed of the run.
        image_shape: (h, w, c).
        normalization: {"mean", "std"} of the training images.
        with_ema: keep moving averages, which begin at the initial values.
        metrics: names of the registered metrics of the run.
        pretrained: variables that replace some or all of the random initial values.
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
        # A copy: the step donates its input, which must not hold a buffer twice.
        ema=jax.tree.map(jnp.copy, {"batch_stats": {}} | dict(variables)) if with_ema else None,
        key=jax.random.key_data(run_key),
        meter=TrainMetrics.zero(metrics),
        normalization=jax.tree.map(jnp.asarray, normalization),
    )
