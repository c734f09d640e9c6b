"""Runs that learn from a trained network, too: what they take from it, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import resnet_jax
from resnet_jax.data.images.preprocessing import Preprocessing
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.train.dispatch import make_train_steps
from resnet_jax.train.distillation import distillation_loss
from resnet_jax.train.experiment import Experiment

TEMPERATURE, WEIGHT = 4.0, 0.75


def _save(path, seed, *, channels=1, metadata=None):
    model = resnet_jax.create_model("resnet20", num_classes=10)
    variables = resnet_jax.init_variables(model, jax.random.key(seed), (8, 8, channels))
    variables["params"]["fc"]["kernel"] *= 30  # a teacher that has opinions
    resnet_jax.save_weights(path, model, variables, metadata=metadata)
    return model, variables


def test_distillation_is_the_divergence_from_the_teacher():
    random = np.random.default_rng(1)
    logits, taught = random.normal(size=(2, 4, 7)).astype(np.float32)

    def softmax(x):
        powers = np.exp(x / 3.0)
        return powers / powers.sum(axis=-1, keepdims=True)

    p, q = softmax(logits), softmax(taught)
    expected = 9.0 * (q * np.log(q / p)).sum(axis=-1)
    np.testing.assert_allclose(
        distillation_loss(logits, taught, temperature=3.0), expected, rtol=1e-4
    )
    np.testing.assert_allclose(distillation_loss(taught, taught, temperature=3.0), 0.0, atol=1e-5)


@pytest.fixture
def config(tiny_config, tmp_path):
    """Twelve steps of a small network on digits, without augmentation or decay."""
    _save(tmp_path / "teacher.safetensors", seed=1)
    tiny_config.model.stage_sizes = (1,)
    tiny_config.data.crop_padding = 0
    tiny_config.data.flip = False
    tiny_config.optimizer.weight_decay = 0.0
    tiny_config.schedule.warmup = 0.0
    tiny_config.distill.teacher = str(tmp_path / "teacher.safetensors")
    tiny_config.distill.model = "resnet20"
    tiny_config.distill.temperature = TEMPERATURE
    tiny_config.distill.weight = WEIGHT
    return tiny_config


@pytest.mark.thorough
def test_the_first_step_equals_one_written_out(config, tmp_path):
    """And another teacher needs no other program: its variables are no part of it."""
    experiment = Experiment.make(config)
    shapes = (experiment.spec.abstract_state, *experiment.spec.abstract_batches(), 1)
    run = (
        make_train_steps(experiment.spec)
        .lower(*shapes, *experiment.spec.abstract_teacher())
        .compile()
    )
    for seed in (1, 2):
        model, variables = _save(tmp_path / "teacher.safetensors", seed)
        (teacher,) = Experiment.make(config).teacher_variables()
        state = experiment.initial_state()
        before = jax.device_get(state)
        images, labels, ids, epochs = experiment.loader().take(0)
        after = run(state, images, labels, ids, epochs, np.int32(1), teacher)
        first = np.asarray(ids)[0, 0]
        x = np.asarray(images)[first].astype(np.float32)
        x = (x - before.normalization["mean"]) / before.normalization["std"]
        y = np.asarray(labels)[first]
        targets = jax.nn.softmax(model.apply(variables, x) / TEMPERATURE)

        def loss(params, x=x, y=y, targets=targets, before=before):
            logits, _ = experiment.spec.model.apply(
                {"params": params, "batch_stats": before.batch_stats},
                x,
                train=True,
                mutable=["batch_stats"],
            )
            hard = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            log_p = jax.nn.log_softmax(logits / TEMPERATURE)
            soft = (targets * (jnp.log(targets) - log_p)).sum(axis=-1)
            return ((1 - WEIGHT) * hard + WEIGHT * TEMPERATURE**2 * soft).mean()

        value, gradients = jax.jit(jax.value_and_grad(loss))(before.params)
        assert float(after.meter.loss) / 32 == pytest.approx(float(value), rel=1e-4)
        for w, g, new in zip(
            *map(jax.tree.leaves, (before.params, gradients, after.params)), strict=True
        ):
            np.testing.assert_allclose(new, w - 0.025 * g, rtol=1e-3, atol=1e-5)


@pytest.mark.thorough
def test_a_run_goes_on_with_its_teacher_and_not_with_another(config, tmp_path):
    expected = resnet_jax.fit(config, tmp_path / "whole")
    resnet_jax.fit(config, tmp_path / "run", stop_at_step=5)
    file = tmp_path / "teacher.safetensors"
    content = file.read_bytes()
    _save(file, seed=2)
    with pytest.raises(ConfigError, match="isn't the teacher that the run began with"):
        resnet_jax.fit(config, tmp_path / "run")
    file.write_bytes(content)
    result = resnet_jax.fit(config, tmp_path / "run")
    for leaf, wanted in zip(*map(jax.tree.leaves, (result.state, expected.state)), strict=True):
        np.testing.assert_array_equal(leaf, wanted)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(result.state)]
    assert not any("layer3" in path for path in paths)  # a stage that only the teacher has


def test_a_teacher_that_does_not_go_with_the_run_is_refused(config, tmp_path):
    path = tmp_path / "other.safetensors"
    config.distill.teacher = str(path)
    refused = functools.partial(pytest.raises, ConfigError)
    with pytest.raises(DataError, match="no such file|can't be read|isn't there"):
        resnet_jax.fit(config, tmp_path / "run")
    _save(path, 1, channels=3)
    with pytest.raises(DataError, match="doesn't fit the model on 8×8×1 images"):
        resnet_jax.fit(config, tmp_path / "run")
    notes = Preprocessing(mean=(0.3, 0.3, 0.3), std=(0.4, 0.4, 0.4), size=8)
    _save(path, 1, metadata=notes.metadata())
    with refused(match=r"data.mean is \(\), and .* was trained with \(0.3, 0.3, 0.3\)"):
        resnet_jax.fit(config, tmp_path / "run")
    config.distill.model = "vgg11_bn"
    with refused(match="a teacher is a ResNet"):
        resnet_jax.fit(config, tmp_path / "run")
    config.distill.model = ""
    with refused(match="a weight file and the name of its network go together"):
        resnet_jax.fit(config, tmp_path / "run")
    assert not any((tmp_path / "run").glob("checkpoints/*"))
