"""The training step, a pure function: augmentation, gradients, update, averages, metrics."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt8

from resnet_jax.data.augment.config import AugmentConfig, augment_batch, example_keys
from resnet_jax.models.network import Network
from resnet_jax.parallel.sharding import GATHERED, gather
from resnet_jax.parallel.shards import FixedShards, isolated
from resnet_jax.train.distillation import DistillConfig
from resnet_jax.train.ema import EmaConfig, update_ema
from resnet_jax.train.losses import LossConfig
from resnet_jax.train.metrics import training_sums
from resnet_jax.train.param_groups import in_head
from resnet_jax.train.sam import SamConfig, sharpness_aware
from resnet_jax.train.state import TrainState, is_step_count

TeacherApply = Callable[[Float[Array, "n h w c"]], Float[Array, "n k"]]
"""The network to distil from: normalised images → logits."""


@dataclasses.dataclass(frozen=True, eq=False)
class StepConfig:
    """What a training step does with a batch.

    Attributes:
        model: linen module.
        optimizer: optax transformation.
        augment: augmentation of the batch.
        loss: training loss.
        distill: distillation term of the loss, where there is a teacher.
        ema: moving averages.
        sam: sharpness-aware minimisation.
        head_only: train only the classifier. The backward pass ends before all other layers.
        skip_nonfinite: keep parameters, statistics and averages where the loss, the gradient or
            one of them stops being finite. The step counts all the same.
    """

    model: Network
    optimizer: optax.GradientTransformation
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    distill: DistillConfig = dataclasses.field(default_factory=DistillConfig)
    ema: EmaConfig = dataclasses.field(default_factory=EmaConfig)
    sam: SamConfig = dataclasses.field(default_factory=SamConfig)
    head_only: bool = False
    skip_nonfinite: bool = False


class Batch(NamedTuple):
    """Examples of one step: m micro-batches of n examples, split over the mesh along n."""

    images: UInt8[Array, "m n h w c"]
    labels: Int[Array, "m n"]
    ids: Int[Array, "m n"]  # with the run's key and the epochs they determine the augmentation
    epochs: Int[Array, "m n"]


class Gradients(NamedTuple):
    """Result of the forward and backward pass."""

    params: Any  # gradients of the mean loss
    batch_stats: Any  # new running statistics
    loss: Float[Array, ""]  # sum over the examples
    metrics: dict[str, Float[Array, ""]]  # sums over the examples


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    config: StepConfig,
    mesh: Mesh | None,
    shards: FixedShards | None = None,
    teacher: TeacherApply | None = None,
) -> TrainState:
    """Take one optimiser step on a batch, and add the batch to the metrics.

    Args:
        state: before the step.
        batch: the examples.
        config: what to do.
        mesh: the mesh of the arrays; None if each device holds all of them, and with `shards`.
        shards: fixed shards of the batch. This function then runs on each device, with the whole
            state and the device's part of the batch, and returns the same state on all devices.
        teacher: the network to distil from.
    """
    if shards:
        done = shard_gradients(state, batch, config, shards, teacher)
        examples = batch.labels.size * shards.mesh.size
        return isolated(lambda *of: update(*of, config=config, examples=examples), state, done)
    done = batch_gradients(state, batch, config, mesh, teacher)
    return update(state, done, config=config, examples=batch.labels.size)


def update(state: TrainState, done: Gradients, *, config: StepConfig, examples: int) -> TrainState:
    """Take an optimiser step with the gradients of a batch of that many examples."""
    updates, opt_state = config.optimizer.update(done.params, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    variables = {"params": params, "batch_stats": done.batch_stats}
    ema = update_ema(config.ema, state.ema, variables, step=state.step)
    after = state.replace(ema=ema, opt_state=opt_state, **variables)

    grad_norm = optax.tree.norm(done.params)
    finite = jnp.isfinite(done.loss) & jnp.isfinite(grad_norm)
    if config.skip_nonfinite:
        finite &= all_finite((after.params, after.batch_stats))
        after = _select(finite, after, state)

    meter = state.meter.add(
        state.step,
        finite=finite,
        examples=examples,
        loss=done.loss,
        grad_norm=grad_norm,
        sums=done.metrics,
    )
    return after.replace(step=state.step + 1, meter=meter)


def batch_gradients(
    state: TrainState,
    batch: Batch,
    config: StepConfig,
    mesh: Mesh | None,
    teacher: TeacherApply | None,
) -> Gradients:
    """Compute the gradients of a batch, micro-batch after micro-batch, and average them.

    The average equals the gradient of the whole batch where normalisation is over groups of
    examples, each within a micro-batch, or independent of the batch. Normalisation over the "whole
    batch" sees one micro-batch at a time: with k micro-batches it equals `bn_group_size` = batch
    size / k. Dropout differs from one number of micro-batches to another.
    """
    micro_batches = batch.labels.shape[0]
    if micro_batches == 1:
        whole = jax.tree.map(lambda array: array[0], batch)
        return forward_backward(state, whole, jnp.int32(0), config, mesh, teacher)

    def add(sums: Any, numbered: tuple[Batch, jax.Array]) -> Any:
        part, number = numbered
        done = forward_backward(state, part, number, config, mesh, teacher)
        return jax.tree.map(jnp.add, sums, done._replace(batch_stats=None)), done.batch_stats

    zero = Gradients(state.params, None, state.meter.loss, state.meter.sums)
    zero = jax.tree.map(jnp.zeros_like, zero)
    sums, running = jax.lax.scan(add, zero, (batch, jnp.arange(micro_batches)))
    normalization = config.model.normalization()
    # The mean of equal floats may differ from them by rounding, so frozen statistics aren't merged.
    stats = (
        state.batch_stats
        if normalization.frozen
        else merge_statistics(running, momentum=normalization.momentum)
    )
    params = jax.tree.map(lambda total: total / micro_batches, sums.params)
    return sums._replace(params=params, batch_stats=stats)


def shard_gradients(
    state: TrainState,
    batch: Batch,
    config: StepConfig,
    shards: FixedShards,
    teacher: TeacherApply | None,
) -> Gradients:
    """Compute the gradients of a batch shard by shard, and average them as a binary tree.

    Normalisation, SAM and mixing see one shard at a time. Dropout and stochastic depth draw by the
    number of the shard. Nothing depends on the device or on the number of devices.
    """
    momentum = config.model.normalization().momentum

    def of_shard(shard: Batch, number: jax.Array) -> Gradients:
        done = forward_backward(state, shard, number, config, None, teacher)
        moved = shifted_moments(done.batch_stats, state.batch_stats, momentum=momentum)
        return done._replace(batch_stats=moved)

    def average(sums: Gradients, before: Any) -> Gradients:
        means = jax.tree.map(lambda total: total / shards.count, (sums.params, sums.batch_stats))
        params, moments = means
        stats = merge_moments(moments, before, momentum=momentum)
        return sums._replace(params=params, batch_stats=stats)

    sums = shards.sum(of_shard, Batch(*(array[0] for array in batch)))
    return isolated(average, sums, state.batch_stats)


def forward_backward(
    state: TrainState,
    part: Batch,
    number: jax.Array,
    config: StepConfig,
    mesh: Mesh | None,
    teacher: TeacherApply | None,
) -> Gradients:
    """Augment a micro-batch, and run the network forwards and backwards.

    With SAM the loss and the running statistics are those of the first pass, at the parameters
    themselves.

    Args:
        state: before the step.
        part: the micro-batch, arrays without the axis m.
        number: index of the micro-batch within the batch.
        config, mesh, teacher: as in `train_step`.
    """
    run_key = jax.random.wrap_key_data(state.key)
    keys = example_keys(run_key, part.ids, part.epochs)
    dropout_key = jax.random.fold_in(run_key, 2**32 - 1)  # no epoch has that number
    dropout_key = jax.random.fold_in(jax.random.fold_in(dropout_key, state.step), number)
    targets = config.loss.targets(part.labels, config.model.num_classes)
    inputs, targets = augment_batch(
        part.images, targets, keys, config.augment, normalization=state.normalization
    )
    teacher_logits = teacher(inputs) if teacher else None

    def apply(params: Any) -> tuple[jax.Array, Any]:
        if config.head_only:
            params = jax.tree.map(
                lambda head, leaf: leaf if head else jax.lax.stop_gradient(leaf),
                in_head(params),
                params,
            )
        params = gather(params, mesh) if mesh else params
        return config.model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            inputs,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )

    if mesh and mesh.shape["fsdp"] > 1:  # gather the parameters again in the backward pass
        forget = jax.checkpoint_policies.save_anything_except_these_names(GATHERED)
        apply = jax.checkpoint(apply, policy=forget)

    def loss_fn(params: Any) -> tuple[jax.Array, Gradients]:
        logits, updated = apply(params)
        losses = config.loss(logits, targets)
        if teacher_logits is not None:
            losses = config.distill(losses, logits, teacher_logits)
        stats = updated.get("batch_stats", {})
        metrics = training_sums(logits, part.labels, state.meter.sums)
        return losses.mean(), Gradients(None, stats, losses.sum(), metrics)

    gradient = jax.grad(loss_fn, has_aux=True)
    gradients, done = gradient(state.params)
    gradients = sharpness_aware(
        config.sam, lambda w: gradient(w)[0], state.params, gradients, step=state.step
    )
    return done._replace(params=gradients)


def merge_statistics(running: Any, *, momentum: float) -> Any:
    """Merge the running statistics that each micro-batch alone would give into those of the batch.

    Means and variances of the whole batch follow from the law of total variance. With kept share
    m, micro-batch i gives the mean m·r + (1 - m)·μᵢ. The variance of these over i is (1 - m)² times
    the variance of the μᵢ, of which the running variance gets the share 1 - m.

    Args:
        running: tree of {"mean", "var"}, [micro-batches, channels] each.
        momentum: m.
    """
    if "var" not in running:
        return {k: merge_statistics(v, momentum=momentum) for k, v in running.items()}
    between = running["mean"].var(axis=0) / (1 - momentum)
    return {"mean": running["mean"].mean(axis=0), "var": running["var"].mean(axis=0) + between}


def shifted_moments(running: Any, before: Any, *, momentum: float) -> Any:
    """Return moments of a shard whose means over the shards give the statistics of the batch.

    The moments are those of `merge_statistics` about the statistics before the step, so that
    little is lost when the square of a mean is subtracted from the mean of squares.

    Args:
        running: the running statistics that the shard alone would give, a tree of {"mean", "var"}.
        before: the running statistics before the step.
        momentum: share of `before` in `running`.
    """
    if "var" not in running:
        return {k: shifted_moments(v, before[k], momentum=momentum) for k, v in running.items()}
    moved = running["mean"] - before["mean"]
    return {"mean": moved, "var": running["var"] + jnp.square(moved) / (1 - momentum)}


def merge_moments(means: Any, before: Any, *, momentum: float) -> Any:
    """Return the running statistics of a batch from the means of `shifted_moments`."""
    if "var" not in means:
        return {k: merge_moments(v, before[k], momentum=momentum) for k, v in means.items()}
    within = means["var"] - jnp.square(means["mean"]) / (1 - momentum)
    return {"mean": before["mean"] + means["mean"], "var": jnp.maximum(within, 0.0)}


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Return whether every element of every array is finite."""
    return jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _select(finite: Bool[Array, ""], after: TrainState, before: TrainState) -> TrainState:
    """Return `after` where the step is finite, else `before`; optimiser step counts go on."""

    def select(path: tuple[Any, ...], new: jax.Array, old: jax.Array) -> jax.Array:
        return new if is_step_count(path, new) else jnp.where(finite, new, old)

    return jax.tree_util.tree_map_with_path(select, after, before)
