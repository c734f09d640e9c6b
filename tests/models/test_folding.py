"""Folded batch normalisation against the normalisation itself, and against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.errors import ScopeParamNotFoundError

import resnet_jax
from resnet_jax.errors import ConfigError
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.presets import PRESETS

_SMALL = {"width": 8, "stage_sizes": (2, 1)}
_ORDERS = ("original", "bn_after_add", "relu_before_add", "relu_preact", "preact")

# Preset, its fields, and how many normalisations there are and stay.
NETWORKS = {
    "basic": ("resnet20", _SMALL, 7, 0),
    "bottleneck, strided stem": ("resnet50", _SMALL | {"num_classes": 5}, 12, 0),
    "deep stem, averaging shortcut": (
        "resnet50",
        _SMALL | {"stem": "deep", "shortcut": "D"},
        14,
        0,
    ),
    "stem on blocks of pixels": ("resnet50", _SMALL | {"stem": "space_to_depth"}, 12, 0),
    "groups": ("resnext50_32x4d", _SMALL | {"groups": 4, "group_width": 2}, 12, 0),
    "squeeze and excitation": ("seresnet50", _SMALL, 12, 0),
    "plain": ("plain20", _SMALL, 7, 0),
    "stochastic depth": ("resnet110_sd", _SMALL, 7, 0),
    "gates": ("resnet20", _SMALL | {"merge": "coupled_gates"}, 7, 0),
    "blocks in a loop": ("resnet20", {"width": 8, "stage_sizes": (3,), "scan": True}, 7, 0),
    "recomputed": ("resnet20", _SMALL | {"remat": True}, 7, 0),
    # Of a sum: the first one of each block, without the first block's, and the last one.
    "pre-activation": ("preresnet20", _SMALL | {"stem_norm": True}, 7, 3),
    "wide": ("wrn16_2", {"width": 4, "stage_sizes": (1, 1)}, 5, 2),
    "normalised after the sum": ("resnet20", _SMALL | {"order": "bn_after_add"}, 7, 3),
    "activated before the sum": ("resnet20", _SMALL | {"order": "relu_before_add"}, 7, 0),
    "activation first": ("resnet20", _SMALL | {"order": "relu_preact"}, 7, 0),
    # The result of the first stage is a feature of its own, which must stay.
    "plain pre-activation": ("preresnet20", _SMALL | {"shortcut": "none"}, 7, 1),
    "standardised kernels": ("resnet20", _SMALL | {"weight_standardized": True}, 7, 7),
    "VGG": ("vgg11_bn", {"stage_sizes": (1, 2), "width": 4, "hidden": 8}, 3, 0),
    "Go": ("alphagozero19", {"units": 1, "width": 8, "hidden": 8}, 5, 0),
    "highway": ("highway19", {"stage_sizes": (1,), "stage_widths": (4,)}, 0, 0),
    "Fixup": ("fixup_resnet20", _SMALL, 0, 0),
    "group norm": ("resnet20", _SMALL | {"norm": "group", "norm_groups": 4}, 0, 0),
}


def _network(preset, fields, size=32):
    """The network, variables as after a training, and images."""
    model = resnet_jax.create_model(preset, **fields)
    shape = PRESETS[preset].image_shape
    if shape[0] > size:
        shape = (size, size, 3)
    rng = np.random.default_rng(0)

    def trained(path, leaf):
        if path[-1].key in ("scale", "var"):
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        if path[-1].key in ("bias", "mean"):
            return jnp.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype)
        return leaf

    variables = resnet_jax.init_variables(model, jax.random.key(0), shape)
    variables = jax.tree_util.tree_map_with_path(trained, variables)
    return model, variables, jax.random.normal(jax.random.key(1), (2, *shape)), shape


def _features(model, variables, images):
    return jax.jit(lambda v, x: model.apply(v, x, method="features"))(variables, images)


def _norms(variables):
    return len(jax.tree.leaves(variables.get("batch_stats", {}))) // 2


def _assert_close(found, wanted, rtol):
    assert found.keys() == wanted.keys()
    for name in wanted:
        a, b = (np.asarray(taps[name], np.float64) for taps in (found, wanted))
        np.testing.assert_allclose(a, b, atol=rtol * np.abs(b).max(), rtol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_folded_network_computes_the_same(name):
    preset, fields, norms, stay = NETWORKS[name]
    model, variables, images, shape = _network(preset, fields)
    before = jax.tree.map(jnp.copy, variables)
    folded = resnet_jax.fold_batch_norm(model, variables, shape)
    stacked = 2 * 2 if fields.get("scan") else 0  # one entry for the two blocks in the loop
    assert (_norms(variables) + stacked // 2, _norms(folded)) == (norms, stay)
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    _assert_close(_features(model, folded, images), _features(model, variables, images), 2e-5)
    again = resnet_jax.fold_batch_norm(model, folded, shape)
    jax.tree.map(np.testing.assert_array_equal, again, folded)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "preset",
    [
        "resnet20",
        "resnet50_v1",
        "preresnet50",
        "wrn28_10",
        "plain34",
        "resnext29_8x64d",
        "seresnet50",
        "vgg11_bn",
        "alphagozero19",
        "highway32",
    ],
)
def test_folded_presets_compute_the_same(preset):
    model, variables, images, shape = _network(preset, {}, size=64)
    folded = resnet_jax.fold_batch_norm(model, variables, shape)
    _assert_close(_features(model, folded, images), _features(model, variables, images), 1e-4)


def _exactly(call, args, kwargs, context):
    """Batch normalisation by its formula, in float64."""
    layer = context.module
    plain = call(*args, **kwargs)
    if not isinstance(layer, BatchNorm) or not layer.has_variable("params", "scale"):
        return plain
    params, stats = layer.variables["params"], layer.variables["batch_stats"]
    x = (args[0] - stats["mean"]) / jnp.sqrt(stats["var"] + layer.epsilon)
    return x * params["scale"] + params["bias"]


@pytest.mark.parametrize("name", ["basic", "bottleneck, strided stem", "pre-activation", "VGG"])
def test_folding_is_exact_in_float64(name):
    preset, fields, *_ = NETWORKS[name]
    with jax.enable_x64(True):
        model, variables, images, shape = _network(preset, fields)
        model = model.copy(dtype=jnp.float64, param_dtype=jnp.float64)
        variables, images = jax.tree.map(lambda a: a.astype(jnp.float64), (variables, images))
        folded = resnet_jax.fold_batch_norm(model, variables, shape)
        with nn.intercept_methods(_exactly):
            wanted = _features(model, variables, images)
            found = _features(model, folded, images)
    maps = [tap for tap in wanted if tap == "stem" or tap.startswith("stage")]
    assert all(wanted[tap].dtype == jnp.float64 for tap in maps)
    _assert_close({t: found[t] for t in maps}, {t: wanted[t] for t in maps}, 1e-12)


def test_gradients_of_images_are_the_same():
    model, variables, images, shape = _network(*NETWORKS["basic"][:2])
    folded = resnet_jax.fold_batch_norm(model, variables, shape)
    slope = jax.jit(jax.grad(lambda x, v: jnp.square(model.apply(v, x)).sum()))
    found, wanted = slope(images, folded), slope(images, variables)
    _assert_close({"images": found}, {"images": wanted}, 1e-4)


def test_a_bfloat16_network_rounds_no_more_than_before():
    model, variables, images, shape = _network("resnet20", _SMALL)
    exact = _features(model, variables, images)["logits"]
    half = model.copy(dtype=jnp.bfloat16)
    folded = resnet_jax.fold_batch_norm(half, variables, shape)
    errors = [
        float(jnp.abs(_features(half, v, images)["logits"] - exact).mean())
        for v in (variables, folded)
    ]
    assert errors[1] < 2 * errors[0]


def test_kernels_of_bfloat16_become_float32():
    model, variables, _, shape = _network("resnet20", _SMALL | {"param_dtype": "bfloat16"})
    folded = resnet_jax.fold_batch_norm(model, variables, shape)
    assert folded["params"]["conv1"]["kernel"].dtype == jnp.float32


def test_a_folded_network_is_not_trained():
    model, variables, images, shape = _network("resnet20", _SMALL)
    folded = resnet_jax.fold_batch_norm(model, variables, shape)
    with pytest.raises(ConfigError, match="bn1 can't be trained: fold_batch_norm folded it"):
        model.apply(folded, images, train=True, mutable=["batch_stats"])


def _without(variables, name):
    return {kind: {k: v for k, v in tree.items() if k != name} for kind, tree in variables.items()}


@pytest.mark.parametrize("folded", [False, True])
def test_a_missing_normalisation_is_an_error(folded):
    model, variables, images, shape = _network("resnet20", _SMALL)
    if folded:
        variables = resnet_jax.fold_batch_norm(model, variables, shape)
    with pytest.raises(ScopeParamNotFoundError, match="scale"):
        model.apply(_without(variables, "bn1"), images)


def test_a_bias_that_the_network_does_not_have_is_ignored():
    model, variables, images, shape = _network("resnet20", _SMALL)
    params = variables["params"]
    stray = variables | {"params": params | {"conv1": params["conv1"] | {"bias": jnp.full(8, 5.0)}}}
    wanted = model.apply(variables, images)
    np.testing.assert_array_equal(model.apply(stray, images), wanted)
    folded = resnet_jax.fold_batch_norm(model, stray, shape)
    np.testing.assert_allclose(model.apply(folded, images), wanted, rtol=1e-4, atol=1e-4)
