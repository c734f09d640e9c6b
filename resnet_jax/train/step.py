"""One training step as a pure function, and many of them in one dispatch."""

import dataclasses
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8

from resnet_jax.data.augment import crop_and_flip, example_keys, normalize
from resnet_jax.models.presets import Network
from resnet_jax.parallel.mesh import replicated, split
from resnet_jax.train.state import Meter, TrainState


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a step does with a batch, beside the model and the optimiser.

    Attributes:
        crop_padding: pixels of padding before the random crop; 0 for none.
        flip: mirror half of the images.
        label_smoothing: probability spread evenly over all classes (1512.00567, section 7).
        ema_decay: of the moving averages; 0 for none.
    """

    crop_padding: int
    flip: bool
    label_smoothing: float
    ema_decay: float


def cross_entropy(
    logits: Float[Array, "n k"], labels: Int[Array, " n"], *, smoothing: float = 0.0
) -> Float[Array, " n"]:
    """Cross-entropy in nats of each example, against labels smoothed towards uniform."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def train_step(
    state: TrainState,
    images: UInt8[Array, "n h w c"],
    labels: Int[Array, " n"],
    ids: Int[Array, " n"],
    epochs: Int[Array, " n"],
    *,
    model: Network,
    optimizer: optax.GradientTransformation,
    recipe: Recipe,
) -> TrainState:
    """Augment a batch, take one step of the optimiser, and add to the meter.

    Args:
        state: before the step.
        images, labels: the batch.
        ids, epochs: of each example, which with the run's key determine its augmentation.
        model, optimizer, recipe: what to do.
    """
    run_key = jax.random.wrap_key_data(state.key)
    keys = example_keys(run_key, ids, epochs)
    dropout_key = jax.random.fold_in(run_key, 2**32 - 1)  # no epoch has that number
    inputs = normalize(images, state.normalization)
    inputs = crop_and_flip(inputs, keys, pad=recipe.crop_padding, flip=recipe.flip)

    def loss_fn(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array, Any]]:
        logits, updated = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            inputs,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.fold_in(dropout_key, state.step)},
        )
        losses = cross_entropy(logits, labels, smoothing=recipe.label_smoothing)
        return losses.mean(), (losses, logits, updated.get("batch_stats", {}))

    gradients, (losses, logits, batch_stats) = jax.grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    ema = state.ema
    if recipe.ema_decay:
        averaged = {"params": params, "batch_stats": batch_stats}
        ema = optax.incremental_update(averaged, state.ema, 1 - recipe.ema_decay)

    correct = (logits.argmax(axis=-1) == labels).sum()
    meter = Meter(
        steps=state.meter.steps + 1,
        examples=state.meter.examples + len(labels),
        loss=state.meter.loss + losses.sum(),
        top1=state.meter.top1 + correct,
        grad_norm=state.meter.grad_norm + optax.tree.norm(gradients),
    )
    return state.replace(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema=ema,
        meter=meter,
    )


def make_train_steps(
    model: Network, optimizer: optax.GradientTransformation, *, recipe: Recipe, mesh: Mesh
) -> jax.stages.Wrapped:
    """Compile "take the next few steps" over images that lie on the devices.

    Returns:
        A jitted `run(state, images, labels, ids, epochs, steps)`: takes the first `steps` of the
        batches listed in `ids` and `epochs` [k, b]. The images and labels are the whole training
        split, replicated; batches are gathered from it and split over the mesh. `state` is donated.
        The number of steps is a run-time value, which a `scan` can't have, so that log, evaluation
        and checkpoint points may cut a dispatch short without a second compilation.
    """
    whole = replicated(mesh)

    def run(state, images, labels, ids, epochs, steps):  # type: ignore[no-untyped-def]
        def body(i: jax.Array, state: TrainState) -> TrainState:
            # Each device gathers its part of the batch from its copy of the images.
            chosen, epoch = jax.lax.with_sharding_constraint((ids[i], epochs[i]), split(mesh))
            return train_step(
                state,
                images[chosen],
                labels[chosen],
                chosen,
                epoch,
                model=model,
                optimizer=optimizer,
                recipe=recipe,
            )

        return jax.lax.fori_loop(0, steps, body, state)

    return jax.jit(
        run,
        in_shardings=whole,
        out_shardings=whole,
        donate_argnums=0,
    )
