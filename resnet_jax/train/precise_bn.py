"""Precise running statistics: of many batches under one set of parameters.

A running statistic is an average over networks of the last few dozen steps, none of which is the
one that is scored. Wu & Johnson 2021 (2105.07576), section 3, take batches anew instead, and
average their moments under parameters that stay as they are.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from resnet_jax.models.network import Network
from resnet_jax.parallel.mesh import batch_sharding, replicated
from resnet_jax.train.multi_seed import Seeds, map_over_seeds
from resnet_jax.train.state import TrainState
from resnet_jax.train.step import Recipe, pick_batch, sum_moments


class PreciseStatistics:
    """Measures the statistics of a state and of its moving averages, on its last batches."""

    def __init__(
        self,
        model: Network,
        *,
        steps: int,
        recipe: Recipe,
        mesh: Mesh,
        resident: bool,
        seeds: Seeds | None = None,
    ) -> None:
        """Compile nothing yet.

        Args:
            model, mesh, resident, seeds: as in `make_train_steps`.
            recipe: as in `train_step`; what varies with the seeds in it has no effect here.
            steps: of how many steps the batches are taken again.
        """
        self._steps = steps
        spread = seeds is not None and seeds.spread
        inner = None if spread else mesh

        def of_seed(state, images, labels, ids, epochs, steps):  # type: ignore[no-untyped-def]
            def body(i: jax.Array, sums: Any) -> Any:
                batch = pick_batch(i, images, labels, ids, epochs, mesh=inner, resident=resident)
                of_step = state.replace(step=state.step + i)  # for what is dropped at random
                more = sum_moments(of_step, batch, model=model, recipe=recipe, mesh=inner)
                return jax.tree.map(jnp.add, sums, more)

            zero = jax.tree.map(jnp.zeros_like, state.batch_stats)
            return jax.lax.fori_loop(0, steps, body, zero)

        measure = of_seed
        if seeds:
            mapped = (True, not resident, not resident, True, True, False)
            measure = map_over_seeds(of_seed, mesh, spread=spread, mapped=mapped)
        layout = batch_sharding(mesh, axis=0) if spread else replicated(mesh)
        self._measure = jax.jit(measure, out_shardings=layout)
        self._add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b), out_shardings=layout)
        self._population = jax.jit(_population, out_shardings=layout)

    def __call__(self, state: TrainState, batches: Any) -> TrainState:
        """Return the state with the statistics of the batches of its last steps."""
        stats = self._of(state, batches)
        if state.ema is not None:
            averaged = self._of(state.replace(params=state.ema["params"]), batches)
            state = state.replace(ema={**state.ema, "batch_stats": averaged})
        return state.replace(batch_stats=stats)

    def _of(self, state: TrainState, batches: Any) -> Any:
        done = int(np.ravel(state.step)[0])  # all seeds are at the same step
        first = step = max(0, done - self._steps)
        sums: Any = None
        while step < done:
            taken = batches.take(step)
            *_, steps, micro_batches, _ = taken.ids.shape
            count = min(steps, done - step)
            more = self._measure(state, *taken, count)
            sums = self._add(sums, more) if sums else more
            step += count
        return self._population(sums, np.float32((done - first) * micro_batches))


def _population(sums: Any, count: jax.Array) -> Any:
    """Mean and variance from sums of `count` {"mean", "var"}, where "var" is of squares."""
    if "var" not in sums:
        return {name: _population(part, count) for name, part in sums.items()}
    mean = sums["mean"] / count
    return {"mean": mean, "var": jnp.maximum(sums["var"] / count - jnp.square(mean), 0.0)}
