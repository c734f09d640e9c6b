"""One training step as a pure function, and many of them in one dispatch."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt8

from resnet_jax.data.augment.config import AugmentConfig, augment_batch, example_keys
from resnet_jax.models.network import Network
from resnet_jax.parallel.mesh import batch_sharding, replicated
from resnet_jax.parallel.sharding import GATHERED, gather, state_shardings
from resnet_jax.train.losses import LOSSES, binarize, distillation
from resnet_jax.train.metrics import training_sums
from resnet_jax.train.multi_seed import Seeds, batch_layout, map_over_seeds, state_layout
from resnet_jax.train.param_groups import in_head
from resnet_jax.train.state import TrainState, counts


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a step does with a batch, beside the model and the optimiser.

    Attributes:
        augment: settings of the augmentation.
        label_smoothing: probability spread evenly over all classes (1512.00567, section 7).
        loss: a name in `LOSSES`.
        bce_threshold: of `losses.binarize`, for the binary cross-entropies; 0 keeps soft targets.
        ema_decay: of the moving averages; 0 for none.
        ema_every: steps between their updates.
        ema_warmup: update number t, from 0, has a decay of at most (1 + t) / (10 + t), so that
            averages forget the initial values, as in TensorFlow.
        sam_radius, sam_every: take the gradient of every `sam_every`-th step, from step 0, where
            the loss is highest within this distance, see `_gradients`; 0 for never.
        distill_weight: share of the loss that is `distillation` from a teacher, if there is one.
        distill_temperature: of that.
        head_only: train the classifier alone; the others have no gradient, and the backward pass
            ends before them.
        skip_nonfinite: leave parameters, statistics and averages as they were where the loss, the
            gradient or one of them stops being finite. The step counts all the same.
    """

    augment: AugmentConfig
    label_smoothing: float
    ema_decay: float
    loss: str = "softmax"
    bce_threshold: float = 0.0
    ema_every: int = 1
    ema_warmup: bool = False
    sam_radius: float = 0.0
    sam_every: int = 1
    distill_weight: float = 0.0
    distill_temperature: float = 1.0
    head_only: bool = False
    skip_nonfinite: bool = False


class Batch(NamedTuple):
    """Examples of one step as m micro-batches of n examples, split over the mesh along n."""

    images: UInt8[Array, "m n h w c"]
    labels: Int[Array, "m n"]
    ids: Int[Array, "m n"]  # with the run's key and the epochs they determine the augmentation
    epochs: Int[Array, "m n"]


class Gradients(NamedTuple):
    """What the forward and backward pass of a micro-batch give."""

    params: Any  # gradients of the mean loss
    batch_stats: Any  # new running statistics
    loss: Float[Array, ""]  # sum over the examples
    metrics: dict[str, Float[Array, ""]]  # likewise


Teacher = Callable[[Float[Array, "n h w c"]], Float[Array, "n k"]]
"""From normalised images to logits."""


def _gradients(
    state: TrainState,
    part: Batch,
    number: jax.Array,
    model: Network,
    recipe: Recipe,
    mesh: Mesh | None,
    teacher: Teacher | None,
) -> Gradients:
    """Augment micro-batch `number` (its arrays without the dimension m), go forth and back.

    Sharpness-aware minimisation (Foret et al. 2020, 2010.01412) goes there once more, from
    parameters that are a step of length `sam_radius` along the gradient g: w + ρ g / ‖g‖. Loss
    and running statistics are those of the first time, of w.
    """
    run_key = jax.random.wrap_key_data(state.key)
    keys = example_keys(run_key, part.ids, part.epochs)
    dropout_key = jax.random.fold_in(run_key, 2**32 - 1)  # no epoch has that number
    dropout_key = jax.random.fold_in(jax.random.fold_in(dropout_key, state.step), number)
    targets = jax.nn.one_hot(part.labels, model.num_classes)
    targets = optax.smooth_labels(targets, recipe.label_smoothing)
    inputs, targets = augment_batch(
        part.images, targets, keys, recipe.augment, normalization=state.normalization
    )
    if recipe.bce_threshold:
        targets = binarize(targets, recipe.bce_threshold)
    taught = teacher(inputs) if teacher else None

    def apply(params: Any) -> tuple[jax.Array, Any]:
        if recipe.head_only:
            params = jax.tree.map(
                lambda head, leaf: leaf if head else jax.lax.stop_gradient(leaf),
                in_head(params),
                params,
            )
        return model.apply(
            {
                "params": gather(params, mesh) if mesh else params,
                "batch_stats": state.batch_stats,
            },
            inputs,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )

    if mesh and mesh.shape["fsdp"] > 1:
        forget = jax.checkpoint_policies.save_anything_except_these_names(GATHERED)
        apply = jax.checkpoint(apply, policy=forget)

    def loss_fn(params: Any) -> tuple[jax.Array, Gradients]:
        logits, updated = apply(params)
        losses = LOSSES[recipe.loss](logits, targets)
        if taught is not None:
            share, temperature = recipe.distill_weight, recipe.distill_temperature
            losses = (1 - share) * losses
            losses += share * distillation(logits, taught, temperature=temperature)
        metrics = training_sums(logits, part.labels, state.meter.sums)
        stats = updated.get("batch_stats", {})
        return losses.mean(), Gradients(None, stats, losses.sum(), metrics)

    gradient = jax.grad(loss_fn, has_aux=True)
    gradients, rest = gradient(state.params)
    if recipe.sam_radius:

        def uphill(gradients: Any) -> Any:
            length = recipe.sam_radius / (optax.tree.norm(gradients) + 1e-12)
            above = jax.tree.map(lambda w, g: w + length * g, state.params, gradients)
            return gradient(above)[0]

        due = state.step % recipe.sam_every == 0
        gradients = jax.lax.cond(due, uphill, lambda gradients: gradients, gradients)
    return rest._replace(params=gradients)


def merge_statistics(running: Any, *, momentum: float) -> Any:
    """The running statistics after one step, from those that each micro-batch alone would give.

    Means and variances of the whole batch by the law of total variance: with kept share m, each
    micro-batch i gives m·r + (1 - m)·μᵢ for the mean, so that the variance of those over i is
    (1 - m)² times that of the μᵢ, of which the running variance is to get 1 - m.

    Args:
        running: tree of {"mean", "var"}, [micro-batches, channels] each.
        momentum: m.
    """
    if "var" not in running:
        return {k: merge_statistics(v, momentum=momentum) for k, v in running.items()}
    between = running["mean"].var(axis=0) / (1 - momentum)
    return {"mean": running["mean"].mean(axis=0), "var": running["var"].mean(axis=0) + between}


def _averages(state: TrainState, variables: Any, recipe: Recipe) -> Any:
    """The moving averages after the step of which `state` is before, and `variables` after."""
    decay: Any = recipe.ema_decay
    if recipe.ema_warmup:
        updates = state.step // recipe.ema_every  # so far
        decay = jnp.minimum(decay, (1 + updates) / (10 + updates))

    def update(ema: Any) -> Any:
        return optax.incremental_update(variables, ema, 1 - decay)

    if recipe.ema_every == 1:
        return update(state.ema)
    due = (state.step + 1) % recipe.ema_every == 0
    return jax.lax.cond(due, update, lambda ema: ema, state.ema)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Network,
    optimizer: optax.GradientTransformation,
    recipe: Recipe,
    mesh: Mesh | None,
    teacher: Teacher | None = None,
) -> TrainState:
    """Augment a batch, take one step of the optimiser, and add to the meter.

    Several micro-batches are done one after the other, and their gradients averaged. That equals
    the whole batch where normalisation is over groups of examples, each within a micro-batch, or
    independent of the batch. Normalisation over the "whole batch" sees one micro-batch at a time:
    with k of them it is that of `bn_group_size` = batch size / k. What is dropped at random
    differs from one number of micro-batches to another.

    Args:
        state: before the step.
        batch: the examples.
        model, optimizer, recipe: what to do.
        mesh: on which the arrays lie; None if each device has all of them to itself.
        teacher: whose logits of the same augmented images are to be learnt, too.
    """
    micro_batches = batch.labels.shape[0]
    if micro_batches == 1:
        whole = jax.tree.map(lambda array: array[0], batch)
        done = _gradients(state, whole, jnp.int32(0), model, recipe, mesh, teacher)
        gradients, batch_stats = done.params, done.batch_stats
    else:

        def add(sums: Any, numbered: tuple[Batch, jax.Array]) -> Any:
            part, number = numbered
            done = _gradients(state, part, number, model, recipe, mesh, teacher)
            sums = jax.tree.map(jnp.add, sums, (done.params, done.loss, done.metrics))
            return sums, done.batch_stats

        sums = (state.params, state.meter.loss, state.meter.sums)
        zero = jax.tree.map(jnp.zeros_like, sums)
        numbered = (batch, jnp.arange(micro_batches))
        (sums, loss, metrics), running = jax.lax.scan(add, zero, numbered)
        gradients = jax.tree.map(lambda total: total / micro_batches, sums)
        momentum = model.normalization().momentum
        batch_stats = merge_statistics(running, momentum=momentum)
        done = Gradients(gradients, batch_stats, loss, metrics)

    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    ema = state.ema
    if recipe.ema_decay:
        ema = _averages(state, {"params": params, "batch_stats": batch_stats}, recipe)

    grad_norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(done.loss) & jnp.isfinite(grad_norm)
    if recipe.skip_nonfinite:
        finite &= all_finite((params, batch_stats))

        def keep(new: jax.Array, old: jax.Array) -> jax.Array:
            return new if counts(new) else jnp.where(finite, new, old)

        params, batch_stats, opt_state, ema = jax.tree.map(
            keep,
            (params, batch_stats, opt_state, ema),
            (state.params, state.batch_stats, state.opt_state, state.ema),
        )

    meter = state.meter.add(
        state.step,
        finite=finite,
        examples=batch.labels.size,
        loss=done.loss,
        grad_norm=grad_norm,
        sums=done.metrics,
    )
    return state.replace(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema=ema,
        meter=meter,
    )


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether every element of every array is."""
    return jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


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
    """The batch of step `i` of those that `make_train_steps` takes at once."""
    chosen, epoch = ids[i], epochs[i]
    if mesh:  # each device gathers its part of the batch from its copy of the images
        layout = batch_sharding(mesh, axis=1)
        chosen, epoch = jax.lax.with_sharding_constraint((chosen, epoch), layout)
    of_step = chosen if resident else i
    return Batch(images[of_step], labels[of_step], chosen, epoch)


def sum_moments(
    state: TrainState, batch: Batch, *, model: Network, recipe: Recipe, mesh: Mesh | None
) -> Any:
    """Sum the moments over the micro-batches of a batch, which are augmented as in a step.

    Returns:
        A tree like the running statistics, of which "mean" has sums of means, and "var" sums of
        means of squares. Of a unit that a micro-batch dropped, the running statistics count.
    """
    exact = model.copy(bn_momentum=0.0)  # its new running statistics are the batch's own

    def add(sums: Any, numbered: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        part, number = numbered
        # Nobody asks for the gradients, so that they aren't computed.
        stats = _gradients(state, part, number, exact, recipe, mesh, None).batch_stats
        return jax.tree.map(jnp.add, sums, _moments(stats)), None

    zero = jax.tree.map(jnp.zeros_like, state.batch_stats)
    return jax.lax.scan(add, zero, (batch, jnp.arange(len(batch.labels))))[0]


def _moments(stats: Any) -> Any:
    if "var" not in stats:
        return {name: _moments(part) for name, part in stats.items()}
    return {"mean": stats["mean"], "var": stats["var"] + jnp.square(stats["mean"])}


def make_train_steps(
    model: Network,
    parts: Callable[[dict[str, jax.Array]], tuple[optax.GradientTransformation, Recipe]],
    *,
    mesh: Mesh,
    state: Any,
    resident: bool,
    teacher: Network | None = None,
    seeds: Seeds | None = None,
) -> jax.stages.Wrapped:
    """Compile "take the next few steps" over examples on the devices or from the host.

    Args:
        model, mesh: as in `train_step`.
        parts: the optimiser and the recipe, given what varies with the seeds.
        state: a train state, or one of shapes, of a single seed.
        resident: see below.
        teacher: the network whose variables `run` takes as its last argument, on every device.
            They aren't part of the program, nor of the state.
        seeds: train several, see below.

    Returns:
        A jitted `run(state, images, labels, ids, epochs, steps)`: takes the first `steps` of k
        steps of m micro-batches of n examples, whose numbers and epochs are `ids` and `epochs`
        [k, m, n]. With `resident`, images and labels are the whole training split, on every
        device, and batches are gathered there; otherwise they are those of the k steps, [k, m, n,
        …], split along n. Of several seeds, the state and all that is of steps has an axis of
        them in front. `state` is donated. The number of steps is a run-time value, which a `scan`
        can't have, so that log, evaluation and checkpoint points may cut a dispatch short without
        a second compilation.
    """
    spread = seeds is not None and seeds.spread
    inner = None if spread else mesh
    of_one = state_shardings(state, mesh)

    def of_seed(state, images, labels, ids, epochs, steps, varied, *taught):  # type: ignore[no-untyped-def]
        advice: Any = functools.partial(teacher.apply, *taught) if teacher else None
        optimizer, recipe = parts(varied)

        def body(i: jax.Array, state: TrainState) -> TrainState:
            batch = pick_batch(i, images, labels, ids, epochs, mesh=inner, resident=resident)
            state = train_step(
                state,
                batch,
                model=model,
                optimizer=optimizer,
                recipe=recipe,
                mesh=inner,
                teacher=advice,
            )
            return jax.lax.with_sharding_constraint(state, of_one) if inner else state

        return jax.lax.fori_loop(0, steps, body, state)

    layout = state_layout(state, mesh, seeds)
    whole, by_step = replicated(mesh), batch_layout(mesh, seeds)
    data = whole if resident else by_step
    varied: dict[str, Any] = {}
    of_all: Callable[..., TrainState] = of_seed
    if seeds:
        mapped = (True, not resident, not resident, True, True, False, True)
        of_all = map_over_seeds(
            of_seed, mesh, spread=spread, mapped=(*mapped, *[False] * bool(teacher))
        )
        varied = dict(seeds.varied)

    def run(state, images, labels, ids, epochs, steps, *taught):  # type: ignore[no-untyped-def]
        return of_all(state, images, labels, ids, epochs, steps, varied, *taught)

    return jax.jit(
        run,
        in_shardings=(layout, data, data, by_step, by_step, whole, *([whole] if teacher else [])),
        out_shardings=layout,
        donate_argnums=0,
    )
