"""A training step of a network of a few lines, which compiles at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from resnet_jax.models.network import Network, Normalization
from resnet_jax.models.norms import BatchNorm
from resnet_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from resnet_jax.parallel.shards import FixedShards
from resnet_jax.train.state import init_state
from resnet_jax.train.step import Batch, StepConfig, train_step

RATE = 0.5
CLASSES = 3


class Small(Network):
    """Normalisation and a classifier."""

    num_classes: int = CLASSES
    dropout: float = 0.0
    frozen: bool = False

    @nn.compact
    def __call__(self, x, *, train=False):
        live = train and not self.frozen
        x = BatchNorm(train=live, update_stats=live, name="bn1")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="fc")(x.reshape(len(x), -1))

    def normalization(self):
        return Normalization("batch", BatchNorm.momentum, self.frozen)


MODEL = Small()


def make_batch(step, *, micro_batches=1, examples=8):
    random = np.random.default_rng(step)
    shape = (micro_batches, examples)
    return Batch(
        images=jnp.asarray(random.integers(0, 256, (*shape, 2, 2, 1)), jnp.uint8),
        labels=jnp.asarray(random.integers(0, CLASSES, shape)),
        ids=jnp.arange(micro_batches * examples).reshape(shape),
        epochs=jnp.zeros(shape, jnp.int32),
    )


def initial_state(model=MODEL, optimizer=None, *, with_ema=False):
    """The state before the first step."""
    return init_state(
        model,
        optimizer or optax.sgd(RATE),
        seed=0,
        image_shape=(2, 2, 1),
        normalization={"mean": np.full(1, 127.5, np.float32), "std": np.full(1, 73.6, np.float32)},
        with_ema=with_ema,
    )


def run_steps(batches, *, devices=1, shards=0, **fields):
    """The states before each of the steps and after the last, on the host."""
    config = StepConfig(**{"model": MODEL, "optimizer": optax.sgd(RATE)} | fields)
    state = initial_state(config.model, config.optimizer, with_ema=config.ema.decay > 0)
    mesh = make_mesh(data=devices)
    fixed = FixedShards(shards, mesh) if shards else None
    step = functools.partial(train_step, config=config, mesh=mesh)
    if fixed:
        step = fixed.map_devices(
            functools.partial(train_step, config=config, mesh=None, shards=fixed),
            in_shardings=(replicated(mesh), batch_sharding(mesh, axis=1)),
            out_shardings=replicated(mesh),
        )
    step = jax.jit(step, compiler_options=fixed.compiler_options if fixed else None)
    states = [state]
    for batch in batches:
        states.append(step(states[-1], batch))
    return jax.device_get(states)


def softmax_loss(params, state, images, labels):
    inputs = (images.astype(np.float32) - 127.5) / 73.6
    variables = {"params": params, "batch_stats": state.batch_stats}
    logits, _ = MODEL.apply(variables, inputs, train=True, mutable=["batch_stats"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def assert_close(tree, expected, **tolerance):
    for leaf, wanted in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, wanted, **{"rtol": 1e-5, "atol": 1e-6} | tolerance)


def after_step(state, gradient):
    return jax.tree.map(lambda w, g: w - RATE * g, state.params, gradient)
