"""Precise running statistics: averages of many batches with the same parameters.

A running statistic averages over the networks of the last few dozen steps, not over the network
that is scored. Wu & Johnson 2021 (2105.07576), section 3, average the moments of fresh batches with
fixed parameters instead.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from resnet_jax.data.loaders.loader import Loader
from resnet_jax.parallel.mesh import batch_sharding, replicated
from resnet_jax.parallel.shards import FixedShards
from resnet_jax.train.dispatch import pick_batch
from resnet_jax.train.spec import TrainSpec
from resnet_jax.train.state import TrainState
from resnet_jax.train.step import Batch, StepConfig, forward_backward


class PreciseStatistics:
    """Measures the running statistics of a state and of its moving averages on its last batches."""

    def __init__(self, spec: TrainSpec) -> None:
        """Compile nothing yet. `spec.config.precise_bn` is the number of steps to average over."""
        self._steps = spec.config.precise_bn
        seeds, resident, shards = spec.seeds, spec.resident, spec.shards
        self._parts = shards.count if shards else spec.batch_shape[1]
        mesh = None if shards else seeds.step_mesh
        # With momentum 0, new running statistics are those of the batch alone. Fields that vary
        # with the seeds have no effect on them.
        model = spec.model.copy(bn_momentum=0.0)
        config = dataclasses.replace(spec.step, model=model)

        shardings = seeds.state_sharding(spec.abstract_single_state)

        def measure(state, images, labels, ids, epochs, steps):  # type: ignore[no-untyped-def]
            if shards:
                state = shards.gather(state, shardings)

            def body(i: jax.Array, sums: Any) -> Any:
                batch = pick_batch(i, images, labels, ids, epochs, mesh=mesh, resident=resident)
                of_step = state.replace(step=state.step + i)  # for dropout
                if shards:
                    more = sum_shard_moments(of_step, batch, config=config, shards=shards)
                else:
                    more = sum_moments(of_step, batch, config=config, mesh=mesh)
                return jax.tree.map(jnp.add, sums, more)

            zero = jax.tree.map(jnp.zeros_like, state.batch_stats)
            return jax.lax.fori_loop(0, steps, body, zero)

        per_seed = (True, not resident, not resident, True, True, False)
        layout = batch_sharding(spec.mesh, axis=0) if seeds.spread else replicated(spec.mesh)
        mapped = seeds.map(measure, per_seed)
        if shards:
            by_step = seeds.batch_sharding
            data = layout if resident else by_step
            arguments = (shardings, data, data, by_step, by_step, layout)
            mapped = shards.map_devices(measure, in_shardings=arguments, out_shardings=layout)
        options = shards.compiler_options if shards else None
        jit = functools.partial(jax.jit, out_shardings=layout, compiler_options=options)
        self._measure, self._population = jit(mapped), jit(_population)
        self._add = jit(lambda a, b: jax.tree.map(jnp.add, a, b))

    def __call__(self, state: TrainState, loader: Loader) -> TrainState:
        """Return the state with the statistics of the batches of its last steps."""
        stats = self._statistics(state, loader)
        if state.ema is not None:
            averaged = self._statistics(state.replace(params=state.ema["params"]), loader)
            state = state.replace(ema={**state.ema, "batch_stats": averaged})
        return state.replace(batch_stats=stats)

    def _statistics(self, state: TrainState, loader: Loader) -> Any:
        done = int(np.ravel(state.step)[0])  # all seeds are at the same step
        first = step = max(0, done - self._steps)
        sums: Any = None
        while step < done:
            batches = loader.take(step)
            count = min(batches.ids.shape[-3], done - step)
            more = self._measure(state, *batches, count)
            sums = self._add(sums, more) if sums else more
            step += count
        # A product: where arrays are divided by one number, XLA multiplies some of them by its
        # reciprocal, and others on several devices than on one.
        scale = np.float32(1) / np.float32((done - first) * self._parts)
        return self._population(sums, scale)


def sum_moments(state: TrainState, batch: Batch, *, config: StepConfig, mesh: Mesh | None) -> Any:
    """Sum the moments over the micro-batches of a batch, augmented as in a step.

    Args:
        state: with the parameters to use.
        batch: the examples.
        config: with a model whose `bn_momentum` is 0.
        mesh: as in `train_step`.

    Returns:
        A tree like the running statistics, with sums of means as "mean" and sums of means of
        squares as "var". For a block that stochastic depth drops in a micro-batch, the running
        statistics are added.
    """

    def add(sums: Any, numbered: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        part, number = numbered
        # XLA removes the backward pass, because the gradients aren't used.
        stats = forward_backward(state, part, number, config, mesh, None).batch_stats
        return jax.tree.map(jnp.add, sums, _moments(stats)), None

    zero = jax.tree.map(jnp.zeros_like, state.batch_stats)
    return jax.lax.scan(add, zero, (batch, jnp.arange(len(batch.labels))))[0]


def sum_shard_moments(
    state: TrainState, batch: Batch, *, config: StepConfig, shards: FixedShards
) -> Any:
    """Sum the moments over the shards of a batch; otherwise as `sum_moments`."""

    def of_shard(shard: Batch, number: jax.Array) -> Any:
        return _moments(forward_backward(state, shard, number, config, None, None).batch_stats)

    return shards.sum(of_shard, Batch(*(array[0] for array in batch)))


def _moments(stats: Any) -> Any:
    if "var" not in stats:
        return {name: _moments(part) for name, part in stats.items()}
    return {"mean": stats["mean"], "var": stats["var"] + jnp.square(stats["mean"])}


def _population(sums: Any, scale: jax.Array) -> Any:
    """Mean and variance from sums of 1 / `scale` {"mean", "var"}, where "var" is of squares."""
    if "var" not in sums:
        return {name: _population(part, scale) for name, part in sums.items()}
    mean = sums["mean"] * scale
    return {"mean": mean, "var": jnp.maximum(sums["var"] * scale - jnp.square(mean), 0.0)}
