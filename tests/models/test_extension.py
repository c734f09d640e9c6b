"""A branch of a user's own, registered from outside the package, in everything the package does.

The example of docs/models.md, ECA, has an integer field that is 0 by default and a parameter that
no network of the package has.
"""

import dataclasses
import json
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import resnet_jax
from resnet_jax.config.schema import default_config
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.models import branches, presets
from resnet_jax.models.branches import Bottleneck, Branch, Layer, register_branch
from resnet_jax.models.fields import setting
from resnet_jax.models.network import Network
from resnet_jax.models.presets import Preset, preset_of, register_preset
from resnet_jax.train.param_groups import parameter_groups
from resnet_jax.weights.files import read_weights
from resnet_jax.weights.load import expected_leaves


def _module_of_docs():
    """The first Python example of docs/models.md as a user's module; it registers a branch."""
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text("utf-8")
    module = types.ModuleType("my_blocks")
    sys.modules["my_blocks"] = module  # where dataclasses look for the names of types
    exec(text.split("```python\n")[1].split("```")[0], vars(module))
    return module


TINY = {"stage_sizes": (1, 3), "width": 8, "num_classes": 5}
IMAGES = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))


@pytest.fixture(autouse=True)
def user():
    """The user's module; the tables that it changes are restored afterwards."""
    tables = branches.BRANCHES, presets.PRESETS
    before = [dict(table) for table in tables]
    yield _module_of_docs()
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)
    del sys.modules["my_blocks"]


def test_a_registered_branch_is_a_field_value_and_has_fields_of_its_own(user):
    model = resnet_jax.create_model("resnet20", branch="eca_basic", eca_kernel_size=5, **TINY)
    assert model.branch == user.EcaBasic(5)
    assert model == resnet_jax.create_model("resnet20", branch=user.EcaBasic(5), **TINY)
    assert hash(model) == hash(model.copy())
    named = resnet_jax.create_model("resnet20", branch="eca_basic", **TINY)
    assert named.branch == "eca_basic"
    assert named == resnet_jax.ResNet(stem="cifar", shortcut="A", branch=user.EcaBasic(), **TINY)
    assert resnet_jax.create_model("eca20").branch == "eca_basic"
    assert preset_of(resnet_jax.create_model("eca20", width=8)) == ("eca20", {"width": 8})


def test_fields_given_beside_a_branch_replace_those_fields_of_it():
    @register_branch("two_fields")
    @dataclasses.dataclass(frozen=True)
    class TwoFields(Branch):
        first: int = 1
        second: int = 2

    given = TwoFields(first=5, second=7)
    model = resnet_jax.create_model("resnet18", branch=given, second=9)
    assert model.branch == TwoFields(first=5, second=9)
    assert resnet_jax.create_model("resnet18", branch=given).branch == given
    named = resnet_jax.create_model("resnet18", branch="two_fields", second=9)
    assert named.branch == TwoFields(first=1, second=9)


def test_its_fields_are_config_fields_and_checked():
    config = default_config()
    config.model.eca_kernel_size = 7
    assert config.model.eca_kernel_size == 7
    with pytest.raises(TypeError):
        config.model.eca_kernel_size = "wide"
    with pytest.raises(ConfigError, match="model.eca_kernel_size is -1; it takes integers from 0"):
        resnet_jax.create_model("eca20", eca_kernel_size=-1)
    with pytest.raises(ConfigError, match="no field 'eca_kernel'. Did you mean 'eca_kernel_size'"):
        resnet_jax.create_model("eca20", eca_kernel=1)
    with pytest.raises(ConfigError, match="'resnet20' has no field 'eca_kernel_size'"):
        resnet_jax.create_model("resnet20", eca_kernel_size=1)
    with pytest.raises(ConfigError, match="model.branch is 'eca'; it can be .*Did you mean 'eca_b"):
        resnet_jax.create_model("resnet20", branch="eca")


@pytest.mark.thorough
def test_features_scan_summary_and_weight_decay_know_it():
    model = resnet_jax.create_model("resnet20", branch="eca_basic", **TINY)
    variables = resnet_jax.init_variables(model, jax.random.key(0), (8, 8, 3))
    kernel = variables["params"]["layer2_2"]["eca"]["conv"]["kernel"]
    assert kernel.shape == (3, 1, 1)
    taps = model.apply(variables, IMAGES, method="features")
    assert taps["stage2"].shape == (4, 4, 4, 16)
    plain = model.copy(branch="basic").apply(variables, IMAGES, method="features")
    assert jnp.abs(taps["stage1"] - plain["stage1"]).max() > 1e-3

    scanned = model.copy(scan=True, remat=True)
    stacked = resnet_jax.stack_units(variables)
    assert stacked["params"]["layer2_rest"]["eca"]["conv"]["kernel"].shape == (2, 3, 1, 1)
    logits = scanned.apply(stacked, IMAGES)
    np.testing.assert_allclose(logits, taps["logits"], rtol=1e-4, atol=1e-5)

    deep = scanned.copy(stochastic_depth=0.5, order="preact", merge="coupled_gates")
    stacked = deep.init(jax.random.key(0), IMAGES)
    rngs = {"dropout": jax.random.key(2)}
    logits, _ = deep.apply(stacked, IMAGES, train=True, mutable=["batch_stats"], rngs=rngs)
    assert jnp.isfinite(logits).all()

    layers = {layer.path: layer for layer in resnet_jax.summarize(model, (8, 8, 3)).layers}
    assert layers["layer1_0/eca/conv"].params == 3
    groups = parameter_groups(variables["params"])
    assert groups["layer1_0"]["eca"]["conv"]["kernel"] == "kernel"


def test_weight_files_hold_it_and_compare_it(tmp_path, user):
    file = tmp_path / "eca.safetensors"
    model = resnet_jax.create_model("resnet20", branch="eca_basic", eca_kernel_size=3, **TINY)
    variables = resnet_jax.init_variables(model, jax.random.key(0), (8, 8, 3))
    resnet_jax.save_weights(file, model, variables)
    assert read_weights(file)["layer1.0.eca.conv.weight"].shape == (1, 1, 3)  # as a Conv1d's
    assert resnet_jax.read_model(file) == model
    loaded = resnet_jax.load_weights(model, file)
    jax.tree.map(np.testing.assert_array_equal, loaded, dict(variables))
    # The same shapes, but another field.
    derived = model.copy(branch=user.EcaBasic(0))
    with pytest.raises(DataError, match="eca_kernel_size 3, and the model has 0"):
        resnet_jax.load_weights(derived, file)
    with pytest.raises(DataError, match="with branch 'eca_basic', and the model has 'basic'"):
        resnet_jax.load_weights(model.copy(branch="basic"), file)

    del branches.BRANCHES["eca_basic"]
    with pytest.raises(DataError, match="branch 'eca_basic', which isn't known; import the module"):
        resnet_jax.read_model(file)
    with pytest.raises(ConfigError, match="EcaBasic has no name; register_branch gives it one"):
        resnet_jax.save_weights(file, model, variables)


def test_variables_that_would_have_one_name_in_a_file_are_refused(tmp_path):
    model = resnet_jax.create_model("resnet20", **TINY)
    variables = {"params": {"layer1_0": {"mine": {"kernel": np.ones((2, 3)), "scale": np.ones(3)}}}}
    with pytest.raises(ConfigError, match="mine/kernel and .*mine/scale would have one name"):
        resnet_jax.save_weights(tmp_path / "w.safetensors", model, variables)


@pytest.mark.thorough
def test_a_run_trains_it_and_is_restored(tiny_config, tmp_path, user):
    tiny_config.model.name = "eca20"
    tiny_config.model.eca_kernel_size = 5
    tiny_config.optimizer.decay_exempt = ("norm", "bias")
    resnet_jax.fit(tiny_config, tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["model"]["eca_kernel_size"] == 5
    network = resnet_jax.restore_run(tmp_path / "run")
    assert network.model.branch == user.EcaBasic(5)
    images = np.zeros((2, *network.image_shape), np.uint8)
    assert network.predict(images).shape[0] == 2
    assert network.evaluate("test").examples > 0


def test_a_network_without_a_name_for_its_branch_is_still_a_network():
    @dataclasses.dataclass(frozen=True)
    class Wide(Branch):
        def layers(self, geometry):
            return [Layer(5, geometry.width, geometry.stride)]

    model = resnet_jax.ResNet(stage_sizes=(1,), width=4, stem="cifar", branch=Wide())
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    assert shapes["params"]["layer1_0"]["conv1"]["kernel"].shape == (5, 5, 4, 4)
    assert {path for path in expected_leaves(model) if "layer1_0/conv" in path}


def test_a_network_of_ones_own_has_config_fields_and_is_found_by_its_preset():
    class Linear(Network, kw_only=True):
        """Logits of the mean pixel."""

        temperature_steps: int = setting(0, "training")

        @nn.compact
        def features(self, images, *, train=False, update_stats=True):
            return {"logits": nn.Dense(self.num_classes, name="fc")(images.mean(axis=(1, 2)))}

    register_preset("linear", Preset(Linear, {"num_classes": 3}, (8, 8, 3)))
    model = resnet_jax.create_model("linear", temperature_steps=2)
    assert model.apply(model.init(jax.random.key(0), IMAGES), IMAGES).shape == (4, 3)
    assert "temperature_steps" in default_config().model


@pytest.mark.parametrize(
    ("name", "cls", "message"),
    [
        ("basic", "EcaBasic", "the branch 'basic'.* belongs to resnet_jax"),
        (
            "Eca Net",
            "EcaBasic",
            "the branch 'Eca Net', whose name isn't an identifier",
        ),
        ("eca", "EfficientChannelAttention", "must be a frozen dataclass that is derived from Br"),
    ],
)
def test_what_is_no_branch_is_refused(name, cls, message, user):
    with pytest.raises(ConfigError, match=message):
        register_branch(name)(getattr(user, cls))


def test_fields_of_a_branch_need_defaults_and_names_of_their_own():
    @dataclasses.dataclass(frozen=True)
    class Unset(Bottleneck):
        ratio: float

    with pytest.raises(ConfigError, match="The field ratio of Unset has no default value"):
        register_branch("unset")(Unset)

    @dataclasses.dataclass(frozen=True)
    class Clash(Bottleneck):
        width: int = 1

    with pytest.raises(ConfigError, match="whose field width is one of ResNet"):
        resnet_jax.ResNet(stage_sizes=(1,), branch=Clash())


def test_presets_are_not_replaced_by_another_module():
    preset = Preset(resnet_jax.ResNet, {"stage_sizes": (1,)})
    for name, owner in (("resnet20", "resnet_jax"), ("eca20", "my_blocks")):
        with pytest.raises(
            ConfigError, match=f"the preset {name!r}, whose name belongs to {owner}"
        ):
            register_preset(name, preset)
    with pytest.raises(ConfigError, match="the preset 'eca 20', whose name isn't an identifier"):
        register_preset("eca 20", preset)
    register_preset("mine", preset)
    register_preset("mine", Preset(resnet_jax.ResNet, {"stage_sizes": (2,)}))  # reloaded
    assert resnet_jax.create_model("mine").stage_sizes == (2,)


def test_presets_that_cannot_be_built_are_refused():
    for fields, message in (
        ({"order": "first"}, "model.order is 'first'"),
        ({"orders": "preact"}, "Preset 'mine' has no field 'orders'. Did you mean 'order'"),
        ({"branch": "eca"}, "model.branch is 'eca'"),
    ):
        with pytest.raises(ConfigError, match=message):
            register_preset("mine", Preset(resnet_jax.ResNet, {"stage_sizes": (1,)} | fields))
    assert "mine" not in presets.PRESETS


@pytest.mark.parametrize("as_object", [False, True])
def test_another_branch_does_not_take_over_the_fields_of_the_presets(user, as_object):
    @register_branch("eca_bottleneck")
    @dataclasses.dataclass(frozen=True)
    class EcaBottleneck(Bottleneck):
        eca_kernel_size: int = 0

    own = (
        {"branch": user.EcaBasic(5)} if as_object else {"branch": "eca_basic", "eca_kernel_size": 5}
    )
    register_preset("five", Preset(resnet_jax.ResNet, TINY | own))

    def branch_of(**fields):
        model = resnet_jax.create_model("five", **fields)
        name, differences = preset_of(model)
        assert resnet_jax.create_model(name, **differences) == model
        return model.branch

    assert branch_of() == user.EcaBasic(5)
    assert branch_of(eca_kernel_size=3) == user.EcaBasic(3)
    assert branch_of(branch="bottleneck") == "bottleneck"
    assert branch_of(branch="eca_basic") == user.EcaBasic(5)
    assert branch_of(branch="eca_bottleneck") == EcaBottleneck(5)  # it has this field too
    assert branch_of(branch=user.EcaBasic(3)) == user.EcaBasic(3)
    assert branch_of(branch=user.EcaBasic()) == "eca_basic"
    with pytest.raises(ConfigError, match="'five' has no field 'eca_kernel_size'"):
        resnet_jax.create_model("five", branch="basic", eca_kernel_size=3)
