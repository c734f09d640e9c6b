"""Biases of convolutions that a normalisation follows become a part of this normalisation."""

import dataclasses

import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

import resnet_jax
from resnet_jax.errors import DataError
from resnet_jax.models.branches import Basic
from resnet_jax.weights.conv_biases import fold_biases
from tests.weights import publishers
from tests.weights.test_load import (
    BASIC,
    BIT,
    BOTTLENECK,
    IMAGES,
    WIDE,
    _load,
    _published,
    _random,
)


def _scaled(model):
    """Values of all variables by path; maps keep their size, so that a bias counts."""
    rng = np.random.default_rng(3)
    return {
        path: rng.normal(0, np.prod(value.shape[:-1]) ** -0.5, value.shape).astype(np.float32)
        if path.endswith("kernel")
        else value
        for path, value in _random(model).items()
    }


def _logits_with_biases(model, variables, biases):
    """The logits of the network if its convolutions had these biases."""

    def add(call, args, kwargs, context):
        outcome = call(*args, **kwargs)
        path = "/".join(context.module.path)
        if context.method_name == "__call__" and path in biases:
            outcome = outcome + biases[path]
        return outcome

    with nn.intercept_methods(add):
        return model.apply(variables, IMAGES)


SCALED = {"branch_scale": 0.5, "shortcut_scale": 0.75}
AFTER_ADD = BASIC | {"order": "bn_after_add", "stage_sizes": (2, 2)}


def _with_biases(model, values, convs=""):
    """Arrays of a file in which convolutions have biases, and these biases by path.

    Args:
        model: the network.
        values: of its variables.
        convs: only convolutions whose paths end with this text have a bias.
    """
    rng = np.random.default_rng(2)
    biases = {
        path.removeprefix("params/").removesuffix("/kernel"): rng.normal(size=leaf.shape[-1])
        for path, leaf in values.items()
        if leaf.ndim == 4 and path.endswith(f"{convs}/kernel")
    }
    arrays = _published(values, publishers.torchvision)
    for path, bias in biases.items():
        name = publishers.torchvision(f"params/{path}/bias")
        arrays[name] = bias.astype(np.float32)
    return arrays, biases


@pytest.mark.parametrize(
    "fields",
    [
        BASIC,
        BASIC | SCALED | {"se_ratio": 0.25, "stochastic_depth": 0.5},
        BOTTLENECK | {"stem": "deep", "stem_pool": "conv", "shortcut": "D"},
        WIDE,
        WIDE | {"stage_sizes": (2, 2), "shortcut": "A"},
        WIDE | {"stage_sizes": (2, 2), "shortcut": "A_middle"},
        WIDE | {"stage_sizes": (2, 2), "shortcut": "A_pool"},
        WIDE | {"branch": "bottleneck", "shortcut": "C"},
        WIDE | {"stage_sizes": (2, 2), "shortcut": "none", "stem_width": 16},
        WIDE | SCALED | {"stage_sizes": (2, 2)},
        WIDE | {"stage_sizes": (2, 2), "stochastic_depth": 0.5},
        WIDE | {"stochastic_depth": 0.5, "stochastic_depth_mode": "example"},
        AFTER_ADD,
        AFTER_ADD | {"shortcut": "none"},
        AFTER_ADD | SCALED | {"shortcut": "A", "stochastic_depth": 0.5},
    ],
    ids=[
        "basic",
        "basic_scaled_and_gated",
        "deep",
        "preact",
        "preact_a",
        "preact_a_middle",
        "preact_a_pool",
        "preact_c",
        "preact_plain",
        "preact_scaled",
        "preact_depth",
        "preact_depth_by_example",
        "after_add",
        "after_add_plain",
        "after_add_scaled",
    ],
)
def test_biases_of_convolutions_become_part_of_the_normalisations(fields, tmp_path):
    """Keras' ResNets have such biases; in some wide ResNets they add up along the shortcuts."""
    model = resnet_jax.ResNet(**fields)
    values = _scaled(model)
    arrays, biases = _with_biases(model, values)
    variables = traverse_util.unflatten_dict(values, sep="/")
    expected = _logits_with_biases(model, variables, biases)
    without = model.apply(variables, IMAGES)
    assert np.abs(without - expected).max() > 0.01 * np.abs(expected).max()
    logits = model.apply(_load(model, arrays, tmp_path), IMAGES)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_normalisations_merged_into_convolutions_are_undone(tmp_path):
    model = resnet_jax.ResNet(**BOTTLENECK)
    values = _scaled(model)
    arrays = {}
    for path, kernel in values.items():
        if not path.endswith("kernel"):
            continue
        module = path.split("/", 1)[1].removesuffix("/kernel")
        name = publishers.torchvision(path)
        if module == "fc":
            arrays[name] = kernel.T.copy()
            arrays["fc.bias"] = values["params/fc/bias"]
            continue
        norm = module.replace("conv", "bn")
        scale = values[f"params/{norm}/scale"] / np.sqrt(values[f"batch_stats/{norm}/var"] + 1e-5)
        arrays[name] = np.ascontiguousarray((kernel * scale).transpose(3, 2, 0, 1))
        shift = values[f"params/{norm}/bias"] - values[f"batch_stats/{norm}/mean"] * scale
        arrays[name.replace("weight", "bias")] = shift
    expected = model.apply(traverse_util.unflatten_dict(values, sep="/"), IMAGES)
    logits = model.apply(_load(model, arrays, tmp_path), IMAGES)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_a_bias_that_no_normalisation_can_take_is_refused(tmp_path):
    model = resnet_jax.ResNet(**BIT)
    arrays = _published(_random(model), publishers.torchvision)
    arrays["layer1.0.conv3.bias"] = np.ones(128, np.float32)
    with pytest.raises(DataError, match=r"no normalisation can take layer1\.0\.conv3\.bias"):
        _load(model, arrays, tmp_path)


@pytest.mark.parametrize("fields", [WIDE, AFTER_ADD], ids=["preact", "after_add"])
def test_a_bias_before_an_excitation_is_refused(fields, tmp_path):
    """The excitation multiplies the bias by a function of the image."""
    model = resnet_jax.ResNet(**fields, se_ratio=0.25)
    values = _scaled(model)
    arrays, _ = _with_biases(model, values)
    with pytest.raises(DataError, match=r"gates before .* \(layer1\.0\.conv2\.bias, .*\)") as error:
        _load(model, arrays, tmp_path)
    assert "\n" not in str(error.value)
    arrays, biases = _with_biases(model, values, "conv1")
    expected = _logits_with_biases(model, traverse_util.unflatten_dict(values, sep="/"), biases)
    logits = model.apply(_load(model, arrays, tmp_path), IMAGES)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("fields", [WIDE, AFTER_ADD], ids=["preact", "after_add"])
@pytest.mark.parametrize("conv", ["layer1_0/conv2", "layer2_0/downsample_conv"])
def test_a_bias_before_the_gates_of_a_sum_is_refused(fields, conv):
    model = resnet_jax.ResNet(**fields, merge="coupled_gates")
    modules = {}
    for path, value in _random(model).items():
        module, _, name = path.partition("/")[2].rpartition("/")
        modules.setdefault(module, {})[name] = value
    width = modules[conv]["kernel"].shape[-1]
    arguments = {"names": {conv: "its bias"}, "file": "weights.npz"}
    with pytest.raises(DataError, match=r"weights.npz has biases .* gates .* \(its bias\)"):
        fold_biases(modules, {conv: np.ones(width, np.float32)}, model, **arguments)
    fold_biases(modules, {conv: np.zeros(width, np.float32)}, model, **arguments)


def test_the_bias_of_a_branch_of_your_own_is_refused_before_a_sum():
    """Layers that follow its last convolution may do anything with the bias."""

    @dataclasses.dataclass(frozen=True)
    class Squared(Basic):
        def __call__(self, x, block):
            return super().__call__(x, block) ** 2

    model = resnet_jax.ResNet(**WIDE | {"branch": Squared()})
    bias = {"layer1_0/conv2": np.ones(16, np.float32)}
    with pytest.raises(DataError, match="gates before"):
        fold_biases(
            {"bn_final": {"mean": np.zeros(16)}},
            bias,
            model,
            names={"layer1_0/conv2": "b"},
            file="f",
        )
