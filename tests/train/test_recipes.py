"""Every published recipe, at tiny size: three steps of all that it turns on."""

import jax
import numpy as np
import pytest

import resnet_jax
from resnet_jax.config.recipes import RECIPES, make
from resnet_jax.config.schema import default_config, model_overrides, validate
from resnet_jax.errors import ConfigError
from resnet_jax.parallel.mesh import make_mesh
from resnet_jax.train.checks import check_batch
from resnet_jax.train.dispatch import make_train_steps
from resnet_jax.train.spec import TrainSpec

EXAMPLES, BATCH, SIZE = 24, 8, 8
MODELS = {"resnet_rs": "resnetrs50", "stochastic_depth": "resnet110_sd", "fixup": "fixup_resnet20"}


@pytest.mark.thorough
@pytest.mark.parametrize("name", RECIPES)
def test_three_steps(name):
    """Losses are finite and parameters move; images of an early size have a step of their own."""
    config = make(name, model=MODELS.get(name, "resnet18"))
    config.model.stage_sizes, config.model.width = (1,), 4
    config.batch_size = BATCH
    config.model.bn_group_size = config.model.bn_group_size and 4
    config.schedule.base_lr, config.schedule.reference_batch = 0.01, BATCH
    config.data.image_size, config.data.resident = SIZE, False
    validate(config)
    mesh = make_mesh(data=1)
    check_batch(config, mesh)
    spec = TrainSpec.make(
        config, mesh=mesh, image_shape=(SIZE, SIZE, 3), num_classes=5, train_examples=EXAMPLES
    )
    state = before = spec.initial_state({"mean": np.full(3, 120.0), "std": np.full(3, 60.0)})
    first = jax.device_get(before.params)
    rng = np.random.default_rng(0)
    images, labels, ids, epochs = spec.abstract_batches()
    batch = (
        rng.integers(0, 256, images.shape, np.uint8),
        rng.integers(0, 5, labels.shape).astype(np.int32),
        np.arange(np.prod(ids.shape), dtype=np.int32).reshape(ids.shape),
        np.zeros(epochs.shape, np.int32),
    )
    train_steps = make_train_steps(spec)
    for _ in range(3):
        state = train_steps(state, *batch, np.int32(1))
    meter = jax.device_get(state.meter)
    assert meter.steps == 3
    assert meter.nonfinite == 0
    assert 0 < meter.loss / meter.examples < 20
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), first, jax.device_get(state.params))
    assert np.mean(jax.tree.leaves(moved)) > 0.8  # blocks that begin as the identity wait a step


def test_a_batch_on_cifar_keeps_the_rate_of_each_image():
    """In proportion to the batch for SGD, to its root for LAMB."""
    for name, expected in (("goyal_2017", 3.2 / 64), ("rsb_a2", 5e-3 / 4)):
        config = make(name, model="resnet56", data="cifar10")
        validate(config)
        peak = config.schedule.base_lr * config.batch_size / config.schedule.reference_batch
        assert peak == pytest.approx(expected)
        assert config.batch_size == 128


def test_what_their_authors_code_says():
    """Fields that a reader of the papers alone would set otherwise; sources: recipes.py."""
    for name in ("rsb_a1", "rsb_a2", "rsb_a3"):
        assert (make(name).loss, make(name).bce_threshold) == ("bce", 0.2)
    assert not make("nvidia_90").model.zero_init_scale
    assert make("ffcv_16").data.size_boundaries == (12.0,)
    assert make("ffcv_88").data.size_boundaries == (71.0,)
    assert make("resnet_rs", model="resnetrs50").optimizer.nesterov
    for name in ("mosaic_mild", "mosaic_medium"):
        assert (make(name).loss, make(name).optimizer.decay_exempt) == ("bce_sum", ())
    fixup = make("fixup", model="fixup_resnet110", data="cifar10")
    assert (fixup.schedule.name, fixup.schedule.boundaries) == ("step", (100.0, 150.0))
    assert (fixup.optimizer.weight_decay, fixup.optimizer.scalar_rate) == (1e-4, 0.1)
    assert not fixup.optimizer.nesterov
    assert fixup.mixup == 1.0


@pytest.mark.parametrize(
    ("model", "left_out"),
    [
        ("resnet50", set()),
        ("preresnet50", {"zero_init_scale"}),
        ("vgg16", {"zero_init_scale", "bn_group_size"}),
        ("bit_r50x1", {"zero_init_scale", "bn_group_size"}),
        ("fixup_resnet50", {"zero_init_scale", "bn_group_size"}),
    ],
)
def test_fields_that_a_network_has_not_are_left_out(model, left_out):
    config = make("goyal_2017", model=model)
    validate(config)
    resnet_jax.create_model(model, **model_overrides(config))
    of_recipe = {"dtype", "zero_init_scale", "bn_group_size"}
    assert set(model_overrides(config)) == of_recipe - left_out


def test_mistakes_are_one_line():
    with pytest.raises(ConfigError, match="no recipe 'rsb'.*rsb_a1"):
        make("rsb")
    with pytest.raises(ConfigError, match="not for 'mnist'"):
        make("rsb_a1", data="mnist")
    with pytest.raises(ConfigError, match="There is no model"):
        make("rsb_a1", model="resnet51")


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_scored_on_the_way_has_a_split(name):
    config = make(name)
    assert config.data.validation or config.eval_every == default_config().eval_every
