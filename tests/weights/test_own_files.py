"""A file of `save_weights` is loaded by names, and its fields are compared with the model's."""

import dataclasses
import functools
import json
import random

import jax
import numpy as np
import pytest
from flax import traverse_util

import resnet_jax
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.models.fields import changes, fields_of
from resnet_jax.models.presets import PRESETS, preset_of
from resnet_jax.weights.architecture_note import _OLDER
from resnet_jax.weights.files import read_metadata, read_weights, write_weights
from resnet_jax.weights.load import expected_leaves

IMAGES = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)

# For every field values that differ; the first is the default, or small.
CHOICES = {
    "stage_sizes": [(1, 2), (2,), (1, 1, 1)],
    "num_classes": [5, 0, 7],
    "stem": ["imagenet", "cifar", "deep", "space_to_depth"],
    "stem_pool": [None, "max", "conv", "none"],
    "stem_width": [None, 8, 16],
    "deep_stem_widths": [None, (4, 8), (6, 4)],
    "stem_norm": [True, False],
    "width": [8, 16],
    "output_stride": [None, 2, 4, 8],
    "head_dropout": [0.0, 0.5],
    "scan": [False, True],
    "remat": [False, True],
    "branch": ["basic", "bottleneck", "single"],
    "order": ["original", "preact", "relu_preact", "bn_after_add", "relu_before_add"],
    "shortcut": ["B", "A", "A_middle", "A_pool", "C", "D", "none"],
    "merge": ["add", "shortcut_gate", "coupled_gates", "independent_gates"],
    "stride_on": ["3x3", "1x1"],
    "groups": [1, 2, 4],
    "group_width": [None, 4, 8],
    "se_ratio": [0.0, 0.25, 0.5],
    "dropout": [0.0, 0.5],
    "shortcut_dropout": [0.0, 0.5],
    "shortcut_scale": [1.0, 0.5],
    "branch_scale": [1.0, 0.25],
    "gate_kernel_size": [1, 3],
    "gate_bias": [-2.0, 1.0],
    "carry_bias": [None, 0.5],
    "norm": ["batch", "group", "layer", "none", "fixup", "skipinit"],
    "norm_groups": [32, 2, 4],
    "norm_epsilon": [1e-5, 1e-2],
    "bn_group_size": [None, 2],
    "bn_frozen": [False, True],
    "bn_momentum": [0.9, 0.5],
    "weight_standardized": [False, True],
    "activation": ["relu", "silu", "gelu"],
    "stochastic_depth": [0.0, 0.5, 0.3],
    "stochastic_depth_mode": ["batch", "example"],
    "zero_init_scale": [False, True],
    "dtype": [np.dtype("float32"), jax.numpy.dtype("bfloat16")],
    "param_dtype": [np.dtype("float32"), jax.numpy.dtype("bfloat16")],
}
# What some fields need in order to differ from their default.
NEEDS = {
    "deep_stem_widths": {"stem": "deep"},
    "stem_norm": {"order": "preact"},
    "stride_on": {"branch": "bottleneck"},
    "groups": {"branch": "bottleneck"},
    "group_width": {"branch": "bottleneck"},
    "gate_kernel_size": {"merge": "coupled_gates"},
    "gate_bias": {"merge": "coupled_gates"},
    "carry_bias": {"merge": "independent_gates"},
    "norm_groups": {"norm": "group"},
    "stochastic_depth_mode": {"stochastic_depth": 0.5},
    "num_classes": {"head_dropout": 0.0},
}
TINY = {"stage_sizes": (1, 2), "num_classes": 5, "width": 8}
TINY_GROUPS = {"norm": "group", "norm_groups": 4}


@functools.lru_cache(maxsize=8)
def _leaves(model):
    return expected_leaves(model)


def _variables(model, seed=0):
    """Values of all variables, all different."""
    rng = np.random.default_rng(seed)
    values = {}
    for path, leaf in _leaves(model).items():
        if path.endswith("kernel"):
            value = rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape)
        else:
            value = rng.uniform(0.5, 1.5, leaf.shape)
        values[path] = value.astype(leaf.dtype)
    tree = traverse_util.unflatten_dict(values, sep="/")
    return resnet_jax.stack_units(tree) if model.scan else tree


def _assert_round_trip(model, file):
    variables = _variables(model)
    resnet_jax.save_weights(file, model, variables)
    loaded = resnet_jax.load_weights(model, file)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    defaults = {"scan": False, "remat": False, "dtype": np.float32, "param_dtype": np.float32}
    found = resnet_jax.read_model(file)
    assert found == model.copy(**defaults)
    name, fields = preset_of(found)
    assert resnet_jax.create_model(name, **fields) == found


def _random_model(rng, **fields):
    """A network with a few fields that differ from the default; None if it isn't valid."""
    names = rng.sample(sorted(CHOICES), rng.randint(2, 9))
    chosen = TINY | {name: rng.choice(CHOICES[name]) for name in names}
    for name in names:
        chosen |= NEEDS.get(name, {})
    chosen |= fields
    if chosen.get("norm") == "group":
        chosen |= {"norm_groups": chosen.get("norm_groups", 4) % 32 or 4}
    try:
        model = resnet_jax.ResNet(**chosen)
        _leaves(model)
    except ConfigError:
        return None
    return model


def _random_models(count, seed):
    rng = random.Random(seed)
    found = []
    while len(found) < count:
        model = _random_model(rng)
        if model is not None:
            found.append(model)
    return found


def test_every_field_has_values_to_try():
    fields = {field.name for field in dataclasses.fields(resnet_jax.ResNet)}
    assert set(CHOICES) == fields - {"parent", "name"}


@pytest.mark.parametrize(
    "fields",
    [
        {"norm": "fixup"},
        {"norm": "fixup", "branch": "bottleneck", "num_classes": 0},
        {"norm": "skipinit"},
        {"merge": "independent_gates"},
        {"merge": "coupled_gates", "se_ratio": 0.5, "norm": "none"},
        {"order": "preact", "stem_pool": "conv", "stage_sizes": (2,)},
        {"order": "preact", "stem": "deep", "stem_pool": "conv", "stage_sizes": (2,)},
        {"order": "preact", "stem_norm": False, "se_ratio": 0.5},
    ],
    ids=str,
)
def test_what_was_not_recognised_by_structure_is_loaded_by_name(fields, tmp_path):
    _assert_round_trip(resnet_jax.ResNet(**TINY | fields), tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "count", [8, pytest.param(60, marks=pytest.mark.thorough)], ids=["few", "many"]
)
def test_random_networks_are_saved_and_loaded_to_the_bit(count, tmp_path):
    for number, model in enumerate(_random_models(count, seed=count)):
        try:
            _assert_round_trip(model, tmp_path / f"{number}.safetensors")
        except (AssertionError, DataError) as error:
            raise AssertionError(f"{model}") from error


SOME = ("resnet50d", "preresnet20", "resnext29_8x64d", "bit_r50x1", "resnetrs200", "fixup_resnet20")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in SOME else pytest.mark.thorough)
        for name, preset in PRESETS.items()
        if preset.build is resnet_jax.ResNet
    ],
)
def test_every_preset_is_saved_and_loaded_to_the_bit(name, tmp_path):
    preset = PRESETS[name].fields
    small = {"stage_sizes": tuple(min(n, 2) for n in preset["stage_sizes"]), "width": 32}
    small |= {"num_classes": 5}
    if preset.get("group_width"):
        small["group_width"] = 2
    _assert_round_trip(resnet_jax.create_model(name, **small), tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", SOME)
def test_a_preset_is_its_own_nearest_preset(name):
    assert preset_of(resnet_jax.create_model(name)) == (name, {})
    wider = resnet_jax.create_model(name, width=128, num_classes=7)
    assert preset_of(wider) == (name, {"width": 128, "num_classes": 7})


def test_shapes_of_scanned_and_unrolled_networks_are_the_same():
    for model in _random_models(5, seed=3):
        tree = jax.eval_shape(
            model.copy(scan=False, remat=False).init, jax.random.key(0), IMAGES[:1]
        )
        unrolled = traverse_util.flatten_dict(tree, sep="/")
        assert {p: (a.shape, a.dtype) for p, a in unrolled.items()} == {
            p: (a.shape, a.dtype) for p, a in expected_leaves(model).items()
        }


def _logits(model, variables):
    return np.asarray(jax.jit(model.apply)(variables, IMAGES), np.float64)


def _agree(one, other, tolerance):
    return np.abs(one - other).max() <= tolerance * np.abs(one).max()


def _check_pair(model, other, name, file):
    """Load the weights of `model` into `other`: it is refused, or the logits are equal."""
    shapes = [{path: leaf.shape for path, leaf in _leaves(m).items()} for m in (model, other)]
    variables = _variables(model)
    resnet_jax.save_weights(file, model, variables)
    if shapes[0] != shapes[1]:
        if name != "num_classes":  # a classifier may be left out
            with pytest.raises(DataError):
                resnet_jax.load_weights(other, file)
        return
    loaded, error = {}, ""
    try:
        loaded = resnet_jax.load_weights(other, file)
    except DataError as refused:
        error = str(refused)
    if error:
        field = fields_of(model)[name]
        assert changes(field) not in ("training", "compilation"), error
        assert f"with {name.removesuffix('_mode')}" in error
        assert "\n" not in error
        return
    kinds = {str(np.dtype(k)) for m in (model, other) for k in (m.dtype, m.param_dtype)}
    tolerance = 1e-5 if kinds == {"float32"} else 0.2
    assert _agree(_logits(model, variables), _logits(other, loaded), tolerance), (name, model)


@pytest.mark.thorough
@pytest.mark.parametrize("name", CHOICES)
def test_another_value_of_a_field_is_refused_or_computes_the_same(name, tmp_path):
    needs = NEEDS.get(name, {})
    base = TINY | (TINY_GROUPS if name == "norm_groups" else {}) | needs
    first, *others = [v for v in CHOICES[name] if not (name == "norm_groups" and v == 32)]
    if name == "group_width":
        base |= {"groups": 2}
    model = resnet_jax.ResNet(**base | {name: first})
    tried = 0
    for value in others:
        fields = base | {name: value} | ({"norm_groups": 4} if value == "group" else {})
        try:
            other = resnet_jax.ResNet(**fields)
        except ConfigError:
            continue
        tried += 1
        _check_pair(model, other, name, tmp_path / "w.safetensors")
    assert tried


@pytest.mark.parametrize(
    "count", [3, pytest.param(50, marks=pytest.mark.thorough)], ids=["few", "many"]
)
def test_random_pairs_that_differ_in_a_field_agree_or_are_refused(count, tmp_path):
    rng = random.Random(count)
    while count:
        model, name = _random_model(rng), rng.choice(sorted(CHOICES))
        if model is None:
            continue
        value = rng.choice(CHOICES[name])
        try:
            other = model.copy(**{name: value})
            _leaves(other)
        except ConfigError:
            continue
        if value == getattr(model, name):
            continue
        _check_pair(model, other, name, tmp_path / "w.safetensors")
        count -= 1


@pytest.mark.parametrize(
    ("name", "fields", "model"),
    [
        ("stochastic_depth", {}, ("resnet110", {"shortcut": "A_pool"})),
        ("shortcut_scale", {"shortcut_scale": 0.5}, ("resnet110_sd", {})),
        ("output_stride", {"output_stride": 2}, ("resnet110_sd", {})),
        ("norm_groups", {"norm": "group", "norm_groups": 8},
         ("resnet110_sd", {"norm": "group", "norm_groups": 16})),
    ],
)  # fmt: skip
def test_networks_of_the_same_parameters_are_told_apart(name, fields, model, tmp_path):
    small = {"stage_sizes": (1, 1, 1), "width": 16}
    saved = resnet_jax.create_model("resnet110_sd", **small | fields)
    resnet_jax.save_weights(tmp_path / "w.safetensors", saved, _variables(saved))
    preset, overrides = model
    other = resnet_jax.create_model(preset, **small | overrides)
    with pytest.raises(DataError, match=f"is of a network with {name} .* Set model.{name}"):
        resnet_jax.load_weights(other, tmp_path / "w.safetensors")


def test_spellings_of_the_same_network_are_loaded(tmp_path):
    """Values that mean the same as None, and per-example stochastic depth, unused in inference."""
    file = tmp_path / "w.safetensors"
    model = resnet_jax.ResNet(**TINY, stochastic_depth=0.5, stochastic_depth_mode="example")
    resnet_jax.save_weights(file, model, _variables(model))
    for fields in (
        {"stem_pool": "max"},
        {"output_stride": 8},
        {"stem_width": 8},
        {"stem": "space_to_depth"},
        {"stochastic_depth": 0.0, "stochastic_depth_mode": "batch"},
        {"stochastic_depth": 0.1},
    ):
        resnet_jax.load_weights(model.copy(**fields), file)


def _older(model, variables, file, metadata):
    """A file of an older version."""
    resnet_jax.save_weights(file, model, variables)
    write_weights(file, read_weights(file), metadata={"format": "pt"} | metadata)


@pytest.mark.parametrize("told", [True, False])
def test_files_of_older_versions_are_loaded(told, tmp_path):
    model = resnet_jax.ResNet(**TINY, branch="bottleneck")
    note = {name: getattr(model, name) for name in _OLDER}
    metadata = {"resnet_jax.behaviour": json.dumps(note)} if told else {}
    variables = _variables(model)
    _older(model, variables, tmp_path / "w.safetensors", metadata)
    loaded = resnet_jax.load_weights(model.copy(stem_pool="max"), tmp_path / "w.safetensors")
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    with pytest.raises(DataError, match="doesn't say which network it's of"):
        resnet_jax.read_model(tmp_path / "w.safetensors")
    if told:
        with pytest.raises(DataError, match="stride_on '3x3', and the model has '1x1'"):
            resnet_jax.load_weights(model.copy(stride_on="1x1"), tmp_path / "w.safetensors")


def test_an_older_file_of_a_network_that_was_not_recognised_is_loaded(tmp_path):
    model = resnet_jax.ResNet(**TINY, norm="fixup")
    note = json.dumps({name: getattr(model, name) for name in _OLDER})
    variables = _variables(model)
    _older(model, variables, tmp_path / "w.safetensors", {"resnet_jax.behaviour": note})
    loaded = resnet_jax.load_weights(model, tmp_path / "w.safetensors")
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def test_metadata_of_another_file_do_not_replace_the_models(tmp_path):
    first, second = (resnet_jax.ResNet(**TINY | {"shortcut": s}) for s in ("A", "A_pool"))
    resnet_jax.save_weights(tmp_path / "a.safetensors", first, _variables(first))
    taken = read_metadata(tmp_path / "a.safetensors")
    resnet_jax.save_weights(
        tmp_path / "b.safetensors", second, _variables(second), metadata=taken | {"by": "us"}
    )
    assert resnet_jax.read_model(tmp_path / "b.safetensors") == second
    assert read_metadata(tmp_path / "b.safetensors")["by"] == "us"


def test_what_does_not_fit_the_names_is_listed(tmp_path):
    model, file = resnet_jax.ResNet(**TINY), tmp_path / "w.safetensors"
    resnet_jax.save_weights(file, model, _variables(model))
    metadata, arrays = read_metadata(file), read_weights(file)
    for more, message in (
        ({"layer1.0.conv1.weight": None}, r"it lacks params/layer1_0/conv1/kernel\.$"),
        ({"other.weight": np.ones(3)}, r"it also has other\.weight\.$"),
        ({"bn1.bias": np.ones(3)}, r"params/bn1/bias is \(3,\) in the file, \(8,\) in the model"),
        ({"fc.weight": np.ones(3)}, r"params/fc/kernel is \(3,\)"),
        ({"conv1.weight": np.ones((8, 3))}, r"params/conv1/kernel is \(3, 8\)"),
        ({"bn1.bias": np.full(8, np.inf)}, "values that aren't finite, in params/bn1/bias"),
    ):
        changed = {name: a for name, a in (arrays | more).items() if a is not None}
        write_weights(file, changed, metadata=metadata)
        with pytest.raises(DataError, match=message) as refused:
            resnet_jax.load_weights(model, file)
        assert "\n" not in str(refused.value)
    write_weights(file, arrays | {"bn1.num_batches_tracked": np.array(7)}, metadata=metadata)
    resnet_jax.load_weights(model, file)
    with pytest.raises(DataError, match="It has 5 classes: load into a model with as many"):
        resnet_jax.load_weights(model.copy(num_classes=7), file)
    assert "fc" not in resnet_jax.load_weights(model.copy(num_classes=0), file)["params"]
