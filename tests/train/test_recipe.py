"""What a recipe adds to a step: moving averages, sharpness-aware gradients, losses.

The network is a few lines, so that a step compiles at once.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from resnet_jax.data.augment.config import AugmentConfig
from resnet_jax.models.network import Network, Normalization
from resnet_jax.models.norms import BatchNorm
from resnet_jax.parallel.mesh import make_mesh
from resnet_jax.train.losses import LOSSES
from resnet_jax.train.state import init_state
from resnet_jax.train.step import Batch, Recipe, train_step

RATE = 0.5
CLASSES = 3


class Small(Network):
    """Normalisation and a classifier."""

    num_classes: int = CLASSES

    @nn.compact
    def __call__(self, x, *, train=False):
        x = BatchNorm(train=train, update_stats=train, name="bn1")(x)
        return nn.Dense(self.num_classes, name="fc")(x.reshape(len(x), -1))

    def normalization(self):
        return Normalization("batch", BatchNorm.momentum)


MODEL = Small()


def _batch(step, *, micro_batches=1, examples=8):
    random = np.random.default_rng(step)
    shape = (micro_batches, examples)
    return Batch(
        images=jnp.asarray(random.integers(0, 256, (*shape, 2, 2, 1)), jnp.uint8),
        labels=jnp.asarray(random.integers(0, CLASSES, shape)),
        ids=jnp.arange(micro_batches * examples).reshape(shape),
        epochs=jnp.zeros(shape, jnp.int32),
    )


def _run(batches, *, devices=1, **fields):
    """The states before each of the steps and after the last, on the host."""
    recipe = Recipe(augment=AugmentConfig(), **{"label_smoothing": 0.0, "ema_decay": 0.0} | fields)
    optimizer = optax.sgd(RATE)
    state = init_state(
        MODEL,
        optimizer,
        seed=0,
        image_shape=(2, 2, 1),
        normalization={"mean": np.full(1, 127.5, np.float32), "std": np.full(1, 73.6, np.float32)},
        with_ema=recipe.ema_decay > 0,
    )
    step = functools.partial(
        train_step, model=MODEL, optimizer=optimizer, recipe=recipe, mesh=make_mesh(data=devices)
    )
    step, states = jax.jit(step), [state]
    for batch in batches:
        states.append(step(states[-1], batch))
    return jax.device_get(states)


def _loss(params, state, images, labels):
    inputs = (images.astype(np.float32) - 127.5) / 73.6
    variables = {"params": params, "batch_stats": state.batch_stats}
    logits, _ = MODEL.apply(variables, inputs, train=True, mutable=["batch_stats"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _gradient_uphill(state, images, labels, *, radius):
    gradient = jax.grad(_loss)
    slope = gradient(state.params, state, images, labels)
    norm = np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(slope)))
    above = jax.tree.map(lambda w, g: w + radius * g / norm, state.params, slope)
    return gradient(above, state, images, labels)


def _assert_close(tree, expected, **tolerance):
    for leaf, wanted in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, wanted, **{"rtol": 1e-5, "atol": 1e-6} | tolerance)


def _after(state, gradient):
    return jax.tree.map(lambda w, g: w - RATE * g, state.params, gradient)


# --- moving averages ------------------------------------------------------------------------------


def test_averages_are_updated_every_few_steps():
    states = _run([_batch(i) for i in range(4)], ema_decay=0.75, ema_every=2)
    averages = [state.ema for state in states]
    _assert_close(averages[1], averages[0], rtol=0, atol=0)
    _assert_close(averages[3], averages[2], rtol=0, atol=0)
    for before, after in ((0, 2), (2, 4)):
        expected = jax.tree.map(
            lambda a, w: 0.75 * a + 0.25 * w, averages[before], states[after].variables()
        )
        _assert_close(averages[after], expected)


@pytest.mark.parametrize("every", [1, 2])
def test_averages_begin_with_a_decay_that_forgets(every):
    """Of 1/10, 2/11, 3/12 and so on, up to `ema_decay`, which is reached at the third."""
    states = _run(
        [_batch(i) for i in range(4 * every)], ema_decay=0.24, ema_warmup=True, ema_every=every
    )
    expected = states[0].variables()
    for update, decay in enumerate((1 / 10, 2 / 11, 0.24, 0.24), start=1):
        new = states[update * every]
        expected = jax.tree.map(
            lambda a, w, d=decay: d * a + (1 - d) * w, expected, new.variables()
        )
        _assert_close(new.ema, expected)


# --- sharpness-aware minimisation -----------------------------------------------------------------


def test_the_gradient_is_taken_uphill_and_all_else_where_it_is():
    batch = _batch(0)
    before, after = _run([batch], sam_radius=0.3)
    _, plain = _run([batch])
    gradient = _gradient_uphill(before, batch.images[0], batch.labels[0], radius=0.3)
    _assert_close(after.params, _after(before, gradient))
    assert not np.allclose(after.params["fc"]["kernel"], plain.params["fc"]["kernel"], rtol=1e-3)
    _assert_close(after.batch_stats, plain.batch_stats, rtol=1e-6)
    assert float(after.meter.loss) == pytest.approx(float(plain.meter.loss), rel=1e-6)


def test_steps_between_have_plain_gradients():
    batches = [_batch(i) for i in range(3)]
    states = _run(batches, sam_radius=0.3, sam_every=2)
    for i, radius in enumerate((0.3, 0.0, 0.3)):
        images, labels = batches[i].images[0], batches[i].labels[0]
        gradient = _gradient_uphill(states[i], images, labels, radius=radius)
        _assert_close(states[i + 1].params, _after(states[i], gradient))


def test_each_micro_batch_goes_uphill_on_its_own():
    batch = _batch(0, micro_batches=2)
    before, after = _run([batch], sam_radius=0.3)
    parts = [
        _gradient_uphill(before, batch.images[i], batch.labels[i], radius=0.3) for i in range(2)
    ]
    _assert_close(after.params, _after(before, jax.tree.map(lambda a, b: (a + b) / 2, *parts)))


def test_eight_devices_go_uphill_together():
    batch = _batch(0)
    _, expected = _run([batch], sam_radius=0.3)
    _, after = _run([batch], sam_radius=0.3, devices=8)
    _assert_close(after.params, expected.params)


# --- losses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "threshold", "on", "off"),
    [("bce", 0.0, 0.8, 0.1), ("bce", 0.2, 1.0, 0.0), ("bce_sum", 0.0, 0.8, 0.1)],
)
def test_a_binary_loss_is_trained_on_and_reported(name, threshold, on, off):
    batch = _batch(0)
    before, after = _run([batch], loss=name, label_smoothing=0.3, bce_threshold=threshold)

    def loss(params):
        inputs = (batch.images[0].astype(np.float32) - 127.5) / 73.6
        variables = {"params": params, "batch_stats": before.batch_stats}
        logits, _ = MODEL.apply(variables, inputs, train=True, mutable=["batch_stats"])
        targets = np.where(np.eye(CLASSES)[batch.labels[0]], on, off)
        return LOSSES[name](logits, targets).mean()

    value, gradient = jax.value_and_grad(loss)(before.params)
    _assert_close(after.params, _after(before, gradient))
    assert float(after.meter.loss) / 8 == pytest.approx(float(value), rel=1e-5)
