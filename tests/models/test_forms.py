"""Forms of one network: scanned, rematerialised, dilated, on blocks of pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import resnet_jax
from resnet_jax.errors import ConfigError
from resnet_jax.models import block_config as blocks
from resnet_jax.models.resnet import ResNet

IMAGES = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
TINY = {"stage_sizes": (3, 3), "width": 4, "num_classes": 5, "stem": "cifar"}


def outcome(model, variables):
    """Logits, new statistics and gradients of a training step's loss."""

    def loss(params):
        logits, updated = model.apply(
            {**variables, "params": params},
            IMAGES,
            train=True,
            mutable=["batch_stats"],
        )
        return jnp.square(logits - 1).sum(), (logits, updated)

    gradients, (logits, updated) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    return {"logits": logits, "stats": updated, "gradients": gradients}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("fields", "forms"),
    [
        ({}, [{"scan": True}, {"scan": True, "remat": True}, {"remat": True}]),
        (
            {"order": "preact", "branch": "bottleneck", "stage_sizes": (1, 3)},
            [{"scan": True, "remat": True}],
        ),
    ],
    ids=["basic", "preact_bottleneck"],
)
def test_scanned_equals_unrolled(fields, forms):
    unrolled = ResNet(**TINY | fields)
    scanned = unrolled.copy(scan=True)
    variables = resnet_jax.init_variables(unrolled, jax.random.key(0), (8, 8, 3))
    stacked = resnet_jax.init_variables(scanned, jax.random.key(0), (8, 8, 3))
    jax.tree.map(np.testing.assert_array_equal, stacked, resnet_jax.stack_units(variables))
    expected = jax.eval_shape(scanned.init, jax.random.key(0), IMAGES)
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, expected)

    ours = outcome(unrolled, variables)
    for form in (unrolled.copy(**form) for form in forms):
        theirs = outcome(form, stacked if form.scan else variables)
        theirs = resnet_jax.unstack_units(theirs)
        assert jax.tree.structure(theirs) == jax.tree.structure(ours)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * max(1.0, float(jnp.abs(a).max())))


@pytest.mark.parametrize("size", [(16, 16), (15, 13)])
def test_the_stem_on_blocks_of_pixels_equals_the_plain_one(size):
    plain = ResNet(stage_sizes=(1,), width=4, num_classes=0)
    images = jax.random.normal(jax.random.key(2), (2, *size, 3))
    variables = plain.init(jax.random.key(0), images)
    stems = [
        m.apply(variables, images, method="features")["stem"]
        for m in (plain, plain.copy(stem="space_to_depth"))
    ]
    np.testing.assert_allclose(*stems, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_dilation_keeps_parameters_and_makes_maps_larger(output_stride):
    model = ResNet(stage_sizes=(1, 1, 2, 2), width=4, branch="bottleneck")
    dense = model.copy(output_stride=output_stride)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = [jax.eval_shape(m.init, jax.random.key(0), image) for m in (model, dense)]
    assert shapes[0] == shapes[1]
    taps = jax.eval_shape(lambda v, x: dense.apply(v, x, method="features"), shapes[0], image)
    assert taps["stage4"].shape[1:3] == (64 // output_stride,) * 2
    assert dense.feature_info()["stage4"] == (64 * 2, output_stride)


def test_a_dilated_network_agrees_with_the_strided_one_where_both_look():
    """At every second place a stage of dilation 2 sees what the stage of stride 2 sees."""
    model = ResNet(stage_sizes=(1, 2), width=4, stem="cifar", num_classes=0)
    images = jax.random.normal(jax.random.key(2), (2, 16, 16, 3))
    variables = model.init(jax.random.key(0), images)
    strided = model.apply(variables, images, method="features")["stage2"]
    dense = model.copy(output_stride=1).apply(variables, images, method="features")["stage2"]
    np.testing.assert_allclose(dense[:, ::2, ::2], strided, rtol=1e-4, atol=1e-5)


def test_another_head_on_the_same_body():
    model = ResNet(**TINY)
    variables = model.init(jax.random.key(0), IMAGES)
    headless = model.copy(num_classes=0)
    pooled = headless.apply(variables, IMAGES)
    np.testing.assert_array_equal(
        pooled, model.apply(variables, IMAGES, method="features")["pooled"]
    )
    wider = model.copy(num_classes=7)
    assert jax.eval_shape(wider.init, jax.random.key(0), IMAGES)["params"]["fc"]["bias"].shape == (
        7,
    )


def literals(hint):
    return st.sampled_from(hint.__args__)


combinations = st.fixed_dictionaries(
    {
        "stage_sizes": st.sampled_from([(1,), (2, 1), (1, 2, 1)]),
        "width": st.sampled_from([4, 8]),
        "stem": st.sampled_from(["imagenet", "cifar", "deep", "space_to_depth"]),
    },
    optional={
        "branch": st.sampled_from(["single", "basic", "bottleneck"]),
        "order": literals(blocks.Order),
        "shortcut": literals(blocks.Shortcut),
        "merge": literals(blocks.Merge),
        "norm": st.sampled_from(["batch", "layer", "none", "fixup", "skipinit"]),
        "activation": literals(blocks.Activation),
        "groups": st.sampled_from([1, 2]),
        "se_ratio": st.sampled_from([0.0, 0.25]),
        "dropout": st.sampled_from([0.0, 0.3]),
        "shortcut_dropout": st.sampled_from([0.0, 0.5]),
        "stochastic_depth": st.sampled_from([0.0, 0.5]),
        "weight_standardized": st.booleans(),
        "zero_init_scale": st.booleans(),
        "bn_frozen": st.booleans(),
        "scan": st.booleans(),
        "remat": st.booleans(),
    },
)


def _build(fields):
    """The network, or None where it is refused, which must be with one sentence."""
    try:
        return ResNet(num_classes=5, **fields)
    except ConfigError as error:
        assert str(error).startswith("model.")  # noqa: PT017 - a refusal is one of two outcomes
        assert "\n" not in str(error)  # noqa: PT017
        return None


@pytest.mark.thorough
@settings(max_examples=60, suppress_health_check=list(HealthCheck), derandomize=True)
@given(combinations, st.integers(1, 17), st.integers(1, 17), st.booleans())
def test_any_combination_is_refused_or_keeps_the_laws_of_shape(fields, h, w, train):
    model = _build(fields)
    if model is None:
        return
    image = jax.ShapeDtypeStruct((2, h, w, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)

    def features(variables, image):
        rngs = {"dropout": jax.random.key(0)}
        return model.apply(
            variables, image, train=train, mutable=["batch_stats"], method="features", rngs=rngs
        )

    taps, updated = jax.eval_shape(features, variables, image)
    for name, info in model.feature_info().items():
        size = (-(-h // info.stride), -(-w // info.stride))
        assert taps[name].shape == (2, *size, info.channels)
    assert taps["logits"].shape == (2, 5)
    assert updated.get("batch_stats", {}) == variables.get("batch_stats", {})


@pytest.mark.thorough
@settings(max_examples=8, suppress_health_check=list(HealthCheck), derandomize=True)
@given(combinations)
def test_any_combination_has_finite_outputs_and_pools_its_last_stage(fields):
    model = _build(fields)
    if model is None:
        return
    variables = resnet_jax.init_variables(model, jax.random.key(0), (8, 8, 3))
    rngs = {"dropout": jax.random.key(0)}
    run = jax.jit(
        lambda v: model.apply(
            v, IMAGES, train=True, mutable=["batch_stats"], method="features", rngs=rngs
        )
    )
    taps, _ = run(variables)
    assert all(jnp.isfinite(tap).all() for tap in taps.values())
    last = taps[f"stage{len(model.stage_sizes)}"]
    np.testing.assert_allclose(taps["pooled"], last.mean(axis=(1, 2)), rtol=1e-4, atol=1e-5)
