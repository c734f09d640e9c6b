"""Weights with other names and layouts give the same variables, or are refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import resnet_jax
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.weights.files import read_weights, write_weights
from resnet_jax.weights.load import expected_leaves
from tests.weights import publishers

BOTTLENECK = {"stage_sizes": (1, 2), "width": 8, "num_classes": 5, "branch": "bottleneck"}
BASIC = BOTTLENECK | {"branch": "basic", "stem": "cifar"}
WIDE = BASIC | {"order": "preact", "width": 16, "stem_width": 8}
BIT = BOTTLENECK | {"width": 32, "order": "preact", "norm": "group", "stem_norm": False}
BIT |= {"weight_standardized": True}

IMAGES = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)


def _random(model, seed=0):
    """Values of all variables by path, all different."""
    rng = np.random.default_rng(seed)
    return {
        path: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        for path, leaf in expected_leaves(model).items()
    }


def _published(values, rename):
    """Arrays with a publisher's names; PyTorch's names have PyTorch's layout."""
    arrays = {rename(path): _laid_out(rename(path), value) for path, value in values.items()}
    assert len(arrays) == len(values)
    return arrays


def _laid_out(name, value):
    if name.endswith("weight"):
        return np.ascontiguousarray(value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T)
    return value[None, None] if name == "resnet/head/conv2d/kernel" else value


def _load(model, arrays, tmp_path):
    write_weights(tmp_path / "weights.safetensors", arrays)
    return resnet_jax.load_weights(model, tmp_path / "weights.safetensors")


def _assert_equal(variables, values):
    flat = traverse_util.flatten_dict(variables, sep="/")
    assert set(flat) == set(values)
    for path, value in values.items():
        np.testing.assert_array_equal(flat[path], value, err_msg=path)
        assert flat[path].dtype == np.float32


@pytest.mark.parametrize(
    ("rename", "fields"),
    [
        (publishers.torchvision, BOTTLENECK),
        (publishers.torchvision, BASIC | {"shortcut": "A"}),
        (publishers.torchvision, BOTTLENECK | {"stage_sizes": (12, 1)}),  # block 10 comes after 9
        (publishers.parallel_cifar, BASIC),
        (publishers.sequential_cifar, BASIC),
        (publishers.sequential_cifar, BOTTLENECK | {"stem": "cifar"}),
        (publishers.underscores, BASIC),
        (publishers.transformers, BASIC | {"stem": "imagenet"}),
        (publishers.transformers, BOTTLENECK),
        (publishers.keras, BOTTLENECK),
        (publishers.wide, WIDE),
        (publishers.wide, WIDE | {"width": 8, "stem_norm": False}),  # a factor of 1
        (publishers.wide_nblock, WIDE),
        (publishers.wide_nblock, WIDE | {"width": 8, "stem_norm": False}),
        (publishers.wide_unnamed_shortcut, WIDE),
        (publishers.wide_unnamed_shortcut, WIDE | {"branch": "bottleneck"}),
        (publishers.wide_functional, WIDE),
        (publishers.big_transfer, BIT),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_names_of_publishers_are_recognised(rename, fields, tmp_path):
    model = resnet_jax.ResNet(**fields)
    values = _random(model)
    arrays = _published(values, rename)
    if rename in (publishers.torchvision, publishers.parallel_cifar):
        arrays["layer1.0.bn1.num_batches_tracked"] = np.array(9)
    _assert_equal(_load(model, arrays, tmp_path), values)


def test_zeros_on_both_sides_of_a_shortcut_are_suspected_by_name(tmp_path, caplog):
    """With zeros on one side the parameters are equal, but the logits differ."""
    for shortcut, rename, warns in (
        ("A", publishers.parallel_cifar, True),
        ("A", publishers.torchvision, False),
        ("A_middle", publishers.parallel_cifar, False),
        ("B", publishers.parallel_cifar, False),
    ):
        caplog.clear()
        model = resnet_jax.ResNet(**BASIC | {"shortcut": shortcut})
        _load(model, _published(_random(model), rename), tmp_path)
        assert ("set the model's shortcut to 'A_middle'" in caplog.text) == warns


@pytest.mark.thorough
@settings(max_examples=12, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    st.fixed_dictionaries(
        {
            "stage_sizes": st.sampled_from([(1,), (2, 1)]),
            "branch": st.sampled_from(["basic", "bottleneck"]),
            "stem": st.sampled_from(["imagenet", "cifar", "deep"]),
            "stem_pool": st.sampled_from([None, "conv"]),
            "order": st.sampled_from(["original", "preact"]),
            "shortcut": st.sampled_from(["A", "B", "C", "D", "none"]),
            "norm": st.sampled_from(["batch", "layer"]),
            "se_ratio": st.sampled_from([0.0, 0.25]),
            "scan": st.booleans(),
            "num_classes": st.sampled_from([0, 7]),
        }
    )
)
def test_names_of_save_weights_are_recognised_without_its_metadata(tmp_path, fields):
    try:
        model = resnet_jax.ResNet(width=32, **fields)
    except ConfigError:
        return
    variables = traverse_util.unflatten_dict(_random(model), sep="/")
    if model.scan:
        variables = resnet_jax.stack_units(variables)
    resnet_jax.save_weights(tmp_path / "w.safetensors", model, variables)
    loaded = _load(model, read_weights(tmp_path / "w.safetensors"), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def test_a_network_for_grey_images_is_saved_and_loaded(tmp_path):
    model = resnet_jax.ResNet(**BASIC)
    variables = model.init(jax.random.key(0), IMAGES[..., :1])
    resnet_jax.save_weights(tmp_path / "w.safetensors", model, variables)
    loaded = resnet_jax.load_weights(model, tmp_path / "w.safetensors")
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def test_names_of_a_saved_file_are_torchvisions(tmp_path):
    model = resnet_jax.create_model("resnet18")
    values = _random(model)
    variables = traverse_util.unflatten_dict(values, sep="/")
    resnet_jax.save_weights(tmp_path / "w.safetensors", model, variables)
    saved = read_weights(tmp_path / "w.safetensors")
    expected = _published(values, publishers.torchvision)
    assert set(saved) == set(expected)
    for name, array in saved.items():
        np.testing.assert_array_equal(array, expected[name])


def test_without_a_classifier_the_files_is_left_out(tmp_path):
    model = resnet_jax.ResNet(**BASIC)
    values = _random(model)
    arrays = _published(values, publishers.torchvision)
    features = _load(model.copy(num_classes=0), arrays, tmp_path)
    assert "fc" not in features["params"]
    with_head = _load(model, arrays, tmp_path)
    assert jax.tree.leaves(features["batch_stats"])[0] is not None
    pooled = model.copy(num_classes=0).apply(features, IMAGES)
    logits = pooled @ with_head["params"]["fc"]["kernel"] + with_head["params"]["fc"]["bias"]
    np.testing.assert_allclose(logits, model.apply(with_head, IMAGES), rtol=1e-4, atol=1e-4)


def _changed(**changes):
    def change(arrays):
        arrays.update({name.replace("__", "."): array for name, array in changes.items()})
        for name in [name for name, array in arrays.items() if array is None]:
            del arrays[name]

    return change


ONES = np.ones(8, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _changed(layer1__0__conv2__weight=None),
            "doesn't fit the model: it lacks params/layer1_0/conv2/kernel. It has stages of 1, 2",
        ),
        (_changed(layer1__0__bn2__running_var=None), "it lacks batch_stats/layer1_0/bn2/var"),
        (_changed(layer3__0__conv1__weight=np.ones((8, 8, 3, 3))), "it also has layer3.0.conv1"),
        (_changed(auxiliary=ONES), "it also has auxiliary"),
        (_changed(layer1__0__conv1__bias=np.ones(3)), r"bias of layer1_0/conv1 is \(3,\)"),
        (_changed(conv1__weight=None, conv1__bias=np.ones((1, 2, 3, 4))), "lacks params/conv1/ker"),
        (_changed(**{"layer²__0__conv1__weight": ONES}), "it also has"),
        (_changed(**{f"layer{'9' * 200}__0__conv1__weight": ONES}), "it also has"),
        (
            _changed(fc__weight=np.ones((10, 16)), fc__bias=np.ones(10)),
            r"fc/kernel is \(16, 10\) in the file, \(16, 5\) in the model. It has 10 classes",
        ),
        (
            _changed(layer1__0__bn1__weight=np.full(8, np.nan, np.float32)),
            "has values that aren't finite, in params/layer1_0/bn1/scale",
        ),
        (
            _changed(layer1__0__bn1__weight=np.full(8, 1e300)),
            "has values that aren't finite, in params/layer1_0/bn1/scale",
        ),
        (
            _changed(**{"layer1__0__conv1__weight": np.ones((8, 8, 1, 1))}),
            r"conv1/kernel is \(1, 1, 8",
        ),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_does_not_fit_is_listed(change, message, tmp_path):
    model = resnet_jax.ResNet(**BASIC)
    arrays = _published(_random(model), publishers.torchvision)
    change(arrays)
    with pytest.raises(DataError, match=message) as refused:
        _load(model, arrays, tmp_path)
    assert "\n" not in str(refused.value)


def test_another_network_is_described(tmp_path):
    small, large = resnet_jax.ResNet(**BASIC), resnet_jax.ResNet(**BOTTLENECK)
    arrays = _published(_random(large), publishers.torchvision)
    with pytest.raises(DataError, match=r"and \d+ more.* 1, 2 blocks with 3 convolutions each"):
        _load(small, arrays, tmp_path)
    with pytest.raises(DataError, match="It isn't a residual network"):
        _load(small, {"a.weight": ONES}, tmp_path)


def test_two_modules_for_one_place_are_refused(tmp_path):
    model = resnet_jax.ResNet(**BASIC)
    arrays = _published(_random(model), publishers.torchvision)
    arrays["other.fc.weight"] = arrays["fc.weight"]
    with pytest.raises(DataError, match=r"it also has other\.fc\.weight"):
        _load(model, arrays, tmp_path)


def test_v1_and_v1_5_are_told_apart_by_what_is_noted(tmp_path):
    model = resnet_jax.ResNet(**BOTTLENECK)
    variables = traverse_util.unflatten_dict(_random(model), sep="/")
    file = tmp_path / "w.safetensors"
    resnet_jax.save_weights(file, model, variables)
    with pytest.raises(DataError, match="stride_on '3x3', and the model has '1x1'"):
        resnet_jax.load_weights(model.copy(stride_on="1x1"), file)
    for note in ("[", json.dumps([1]), "9" * 9999):
        write_weights(file, read_weights(file), metadata={"resnet_jax.behaviour": note})
        with pytest.raises(DataError, match="fields is damaged"):
            resnet_jax.load_weights(model, file)


def test_other_kinds_of_networks_are_refused(tmp_path):
    model = resnet_jax.create_model("vgg11")
    with pytest.raises(ConfigError, match="not into VGG"):
        resnet_jax.load_weights(model, tmp_path / "none")
    with pytest.raises(ConfigError, match="not of VGG"):
        resnet_jax.save_weights(tmp_path / "none", model, {})


def test_other_types_of_numbers_are_read(tmp_path):
    model = resnet_jax.ResNet(**BASIC)
    values = {k: np.round(v * 64) / 64 for k, v in _random(model).items()}
    arrays = {
        name: array.astype(jnp.bfloat16) if array.ndim > 1 else array.astype(np.float64)
        for name, array in _published(values, publishers.torchvision).items()
    }
    _assert_equal(_load(model, arrays, tmp_path), values)
