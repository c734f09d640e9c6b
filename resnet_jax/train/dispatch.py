"""Many training steps in one dispatch: compiled once per image size, for one seed or several."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from resnet_jax.data.loaders.loader import DeviceBatches
from resnet_jax.parallel.mesh import batch_sharding, replicated
from resnet_jax.parallel.sharding import state_shardings
from resnet_jax.train.clock import Clock
from resnet_jax.train.spec import TrainSpec
from resnet_jax.train.state import TrainState
from resnet_jax.train.step import Batch, train_step
from resnet_jax.train.watchdog import Watchdog
from resnet_jax.utils.malloc import release_freed_memory

_SETTLING = 3  # dispatches after which a step finds its memory where the last one left it


class CompiledSteps:
    """Runs training steps, compiled once for each size of images."""

    def __init__(
        self, spec: TrainSpec, teacher: tuple[Any, ...], *, clock: Clock, watchdog: Watchdog
    ) -> None:
        """Compile nothing yet.

        Args:
            spec: of the run.
            teacher: (variables of the teacher,), on every device; () without a teacher.
            clock: paused while a step is compiled.
            watchdog: told of compilations.
        """
        self._spec, self._teacher = spec, teacher
        self._clock, self._watchdog = clock, watchdog
        self._steps = make_train_steps(spec)
        self._compiled: dict[int, jax.stages.Compiled] = {}  # by the size of images
        self._settling = _SETTLING

    def compile(self, state: TrainState, step: int) -> jax.stages.Compiled:
        """Return the program for images of the size at `step`; compile it when first needed."""
        size = self._spec.image_sizes.at(step)
        if size not in self._compiled:
            self._watchdog.now("compiling the training step")
            with self._clock.paused(state, "compile"):
                shapes = self._spec.abstract_batches(image_size=size)
                lowered = self._steps.lower(state, *shapes, 1, *self._teacher)
                self._compiled[size] = lowered.compile()
        return self._compiled[size]

    def __call__(
        self, state: TrainState, batches: DeviceBatches, *, first: int, steps: int
    ) -> TrainState:
        """Take `steps` steps from step number `first` on; donates `state`."""
        program = self.compile(state, first)
        state = program(state, *batches, np.int32(steps), *self._teacher)
        if self._settling:
            self._settling -= 1
            jax.block_until_ready(state)
            release_freed_memory()
        return state


def make_train_steps(spec: TrainSpec) -> jax.stages.Wrapped:
    """Jit "take the next few steps", over examples on the devices or sent from the host.

    Returns:
        A jitted `run(state, images, labels, ids, epochs, steps, *teacher)`. It takes the first
        `steps` of k steps of m micro-batches of n examples, with the ids and epochs [k, m, n]. If
        `spec.resident`, images and labels are the whole training split, on every device, and
        batches are gathered there; otherwise they are those of the k steps, [k, m, n, …], split
        along n. With several seeds, the state and all per-step arrays have a leading seed axis.
        `teacher` are the variables of `spec.teacher_model`, if there is one: neither a part of the
        program nor of the state. `state` is donated. The number of steps is a run-time value, which
        a `scan` can't have, so that log, evaluation and checkpoint points may cut a dispatch short
        without a second compilation.
    """
    seeds, resident, shards = spec.seeds, spec.resident, spec.shards
    shardings = state_shardings(spec.abstract_single_state, spec.mesh)
    mesh = None if shards else seeds.step_mesh

    def run_single(
        state: TrainState,
        images: jax.Array,
        labels: jax.Array,
        ids: jax.Array,
        epochs: jax.Array,
        steps: jax.Array,
        varied: Mapping[str, jax.Array],
        *teacher_variables: Any,
    ) -> TrainState:
        teacher: Any = None
        if spec.teacher_model:
            teacher = functools.partial(spec.teacher_model.apply, *teacher_variables)
        config = spec.step_config(varied)

        def body(i: jax.Array, state: TrainState) -> TrainState:
            batch = pick_batch(i, images, labels, ids, epochs, mesh=mesh, resident=resident)
            if shards:
                state = shards.gather(state, shardings)
            state = train_step(
                state, batch, config=config, mesh=mesh, shards=shards, teacher=teacher
            )
            if shards:
                return shards.split(state, shardings)
            return jax.lax.with_sharding_constraint(state, shardings) if mesh else state

        return jax.lax.fori_loop(0, steps, body, state)

    teachers = 1 if spec.teacher_model else 0
    per_seed = (True, not resident, not resident, True, True, False, True, *[False] * teachers)
    layout, by_step = seeds.state_sharding(spec.abstract_single_state), seeds.batch_sharding
    whole = replicated(spec.mesh)
    data = whole if resident else by_step
    in_shardings = (layout, data, data, by_step, by_step, whole)
    if shards:
        mapped = shards.map_devices(
            run_single,
            in_shardings=(*in_shardings, whole, *[whole] * teachers),
            out_shardings=layout,
        )
    else:
        mapped = seeds.map(run_single, per_seed)

    def run(state, images, labels, ids, epochs, steps, *teacher):  # type: ignore[no-untyped-def]
        return mapped(state, images, labels, ids, epochs, steps, dict(seeds.varied), *teacher)

    return jax.jit(
        run,
        in_shardings=(*in_shardings, *[whole] * teachers),
        out_shardings=layout,
        donate_argnums=0,
        compiler_options=shards.compiler_options if shards else None,
    )


def pick_batch(
    i: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    ids: jax.Array,
    epochs: jax.Array,
    *,
    mesh: Mesh | None,
    resident: bool,
) -> Batch:
    """Return the batch of step `i` of a dispatch; arrays as in `make_train_steps`."""
    chosen, epoch = ids[i], epochs[i]
    if mesh:  # each device gathers its part of the batch from its copy of the images
        layout = batch_sharding(mesh, axis=1)
        chosen, epoch = jax.lax.with_sharding_constraint((chosen, epoch), layout)
    of_step = chosen if resident else i
    return Batch(images[of_step], labels[of_step], chosen, epoch)
