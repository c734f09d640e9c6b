"""The training step on one device and on eight, and against a step written out by hand."""

import functools

import jax
import numpy as np
import optax
import pytest

from resnet_jax.config.schema import default_config
from resnet_jax.data.augment.config import AugmentConfig
from resnet_jax.train.dispatch import make_train_steps
from resnet_jax.train.ema import EmaConfig
from resnet_jax.train.experiment import Experiment
from resnet_jax.train.step import StepConfig, train_step
from tests.train.small_step import RATE, Small, initial_state, make_batch, run_steps


def _train(config, *, devices: int, steps: int):
    """Ten losses and the final state."""
    config.mesh.data = devices
    experiment = Experiment.make(config)
    run = make_train_steps(experiment.spec)
    state = experiment.initial_state()
    batches = experiment.loader()
    losses = []
    for step in range(steps):
        state = run(state, *batches.take(step), 1)
        losses.append(float(state.meter.loss) - sum(losses))
    return np.array(losses) / config.batch_size, jax.device_get(state)


@pytest.fixture(scope="module")
def one_device():
    from tests.conftest import make_tiny_config

    return _train(make_tiny_config(), devices=1, steps=10)


def test_ten_steps_on_eight_devices_equal_ten_steps_on_one(tiny_config, one_device):
    """Float32, batch normalisation over the global batch, augmentation on."""
    losses, state = _train(tiny_config, devices=8, steps=10)
    expected_losses, expected = one_device
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    parts = [(s.params, s.batch_stats, s.ema, s.opt_state) for s in (state, expected)]
    for leaf, wanted in zip(*map(jax.tree.leaves, parts), strict=True):
        # Relative to the array's size: single elements may be close to zero.
        np.testing.assert_allclose(leaf, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.thorough
def test_examples_are_mixed_alike_on_any_mesh_and_with_neighbours_of_the_device(tiny_config):
    tiny_config.model.stage_sizes = (1, 1)
    tiny_config.mixup, tiny_config.cutmix, tiny_config.data.random_erasing = 0.2, 1.0, 0.5
    losses, _ = _train(tiny_config, devices=8, steps=3)
    expected, _ = _train(tiny_config, devices=1, steps=3)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    tiny_config.mesh.data = 8
    experiment = Experiment.make(tiny_config)
    batches = experiment.spec.abstract_batches()
    steps = make_train_steps(experiment.spec).lower(experiment.spec.abstract_state, *batches, 1)
    program = steps.compile().as_text()
    assert "all-gather" not in program
    assert "all-to-all" not in program
    assert "collective-permute" not in program


def test_many_steps_in_one_dispatch_equal_steps_one_by_one(tiny_config, one_device):
    _, expected = one_device
    experiment = Experiment.make(tiny_config)
    run = make_train_steps(experiment.spec)
    state = experiment.initial_state()
    batches = experiment.loader()
    step = 0
    for count in (4, 3, 2, 1):
        state = run(state, *batches.take(step), count)
        step += count
    assert int(state.step) == 10
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(leaf, wanted)


def test_the_batch_is_split_over_the_mesh_and_never_gathered(tiny_config):
    tiny_config.mesh.data = 8
    experiment = Experiment.make(tiny_config)
    batches = experiment.spec.abstract_batches()
    steps = make_train_steps(experiment.spec).lower(experiment.spec.abstract_state, *batches, 1)
    program = steps.compile().as_text()
    assert "all-reduce" in program
    assert "all-gather" not in program
    assert "all-to-all" not in program


def test_the_first_step_equals_one_written_out(tiny_config):
    """Plain SGD on the mean cross-entropy, without any of our training code."""
    tiny_config.model.stage_sizes = (1, 1)
    tiny_config.data.crop_padding = 0
    tiny_config.data.flip = False
    tiny_config.schedule.warmup = 0.0
    experiment = Experiment.make(tiny_config)
    state = experiment.initial_state()
    images, labels, ids, epochs = experiment.loader().take(0)
    before = jax.device_get(state)
    after = make_train_steps(experiment.spec)(state, images, labels, ids, epochs, 1)

    first = np.asarray(ids)[0, 0]
    x = np.asarray(images)[first].astype(np.float32)
    x = (x - before.normalization["mean"]) / before.normalization["std"]
    y = np.asarray(labels)[first]

    def loss(params):
        logits, _ = experiment.spec.model.apply(
            {"params": params, "batch_stats": before.batch_stats},
            x,
            train=True,
            mutable=["batch_stats"],
        )
        return -jax.nn.log_softmax(logits)[np.arange(len(y)), y].mean()

    value, gradients = jax.jit(jax.value_and_grad(loss))(before.params)
    decay = tiny_config.optimizer.weight_decay
    for p, g, new in zip(
        *map(jax.tree.leaves, (before.params, gradients, after.params)), strict=True
    ):
        # lr = 0.1 × 32 / 128; the momentum buffer is empty.
        np.testing.assert_allclose(new, p - 0.025 * (g + decay * p), rtol=1e-4, atol=1e-6)
    assert float(after.meter.loss) / 32 == pytest.approx(float(value), rel=1e-5)
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(gradients)))
    assert float(after.meter.grad_norm) == pytest.approx(norm, rel=1e-4)
    for ema, old, new in zip(
        *map(jax.tree.leaves, (after.ema["params"], before.params, after.params)), strict=True
    ):
        np.testing.assert_allclose(ema, 0.9 * old + 0.1 * new, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("highway19", None),
        ("vgg11_bn", (1, 1)),
        ("alphagozero19", None),
        ("fixup_resnet20", (1, 1)),
    ],
)
def test_each_kind_of_network_has_a_step(name, stages, accumulate):
    """Traced, not compiled: networks without statistics, or without the fields of a `ResNet`."""
    config = default_config()
    config.model.name = name
    config.model.stage_sizes = stages
    config.data.name = "digits"
    config.data.crop_padding = 1
    config.accumulate = accumulate
    experiment = Experiment.make(config)
    state = experiment.spec.abstract_state
    steps = make_train_steps(experiment.spec)
    after = jax.eval_shape(steps, state, *experiment.spec.abstract_batches(), 1)
    assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.thorough
def test_fixed_shards_have_the_same_bits_on_one_device_and_on_eight():
    """All of the state, with dropout, augmentation and a clipped gradient."""
    fields = {
        "model": Small(dropout=0.2),
        "optimizer": optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(RATE, momentum=0.9)),
        "augment": AugmentConfig(crop_padding=1, flip=True),
        "ema": EmaConfig(decay=0.9),
    }
    batches = [make_batch(step, examples=32) for step in range(4)]
    one, eight = (run_steps(batches, devices=n, shards=8, **fields)[-1] for n in (1, 8))
    assert one.meter.examples == 4 * 32
    for (path, leaf), other in zip(
        jax.tree.leaves_with_path(one), jax.tree.leaves(eight), strict=True
    ):
        assert leaf.tobytes() == other.tobytes(), jax.tree_util.keystr(path)


def test_running_statistics_of_shards_are_those_of_the_whole_batch():
    """By the law of total variance, though each shard is normalised on its own."""
    batch = make_batch(0, examples=32)
    _, after = run_steps([batch], shards=8)
    images = (np.float64(batch.images[0]) - 127.5) / np.float64(np.float32(73.6))
    statistics = after.batch_stats["bn1"]
    np.testing.assert_allclose(statistics["mean"], 0.1 * images.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * images.var((0, 1, 2)), rtol=1e-5)


def test_frozen_statistics_keep_their_bits_whatever_the_number_of_micro_batches():
    model = Small(frozen=True)
    config = StepConfig(model=model, optimizer=optax.sgd(RATE))
    step = jax.jit(functools.partial(train_step, config=config, mesh=None))
    state, batch = initial_state(model), make_batch(0, micro_batches=3)
    drawn = np.random.default_rng(0).uniform(0.1, 1, (20, 2, 1)).astype(np.float32)
    for mean, var in drawn:  # for some of them (x + x + x) / 3 differs from x
        before = {"bn1": {"mean": mean, "var": var}}
        after = jax.device_get(step(state.replace(batch_stats=before), batch).batch_stats)
        assert after["bn1"]["mean"].tobytes() == mean.tobytes()
        assert after["bn1"]["var"].tobytes() == var.tobytes()
