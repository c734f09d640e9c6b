"""The networks against the papers' counts, and the contract of `apply`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax
from resnet_jax.errors import ConfigError
from resnet_jax.models.block import ResidualBlock
from resnet_jax.models.block_config import BlockConfig
from resnet_jax.models.presets import PRESETS

# Parameters to the unit from torchvision's published counts (option B) and from the formula of the
# 6n + 2 nets; multiply-adds in millions. v1 and v1.5 differ in the stride of bottlenecks only.
IMAGENET = {
    "resnet18": (11_689_512, 1814.07),
    "resnet18_v1": (11_689_512, 1814.07),
    "resnet34": (21_797_672, 3663.76),
    "resnet34_v1": (21_797_672, 3663.76),
    "resnet50": (25_557_032, 4089.18),
    "resnet50_v1": (25_557_032, 3857.97),
    "resnet101": (44_549_160, 7801.41),
    "resnet101_v1": (44_549_160, 7570.19),
    "resnet152": (60_192_808, 11513.63),
    "resnet152_v1": (60_192_808, 11282.42),
    "resnet200": (64_673_832, 15007.48),
    "resnet200_v1": (64_673_832, 14776.27),
}
CIFAR = {
    "resnet20": (269_722, 40.551),
    "resnet32": (464_154, 68.863),
    "resnet44": (658_586, 97.174),
    "resnet56": (853_018, 125.486),
    "resnet110": (1_727_962, 252.888),
    "resnet1202": (19_421_274, 2829.24),
}


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_nets_have_the_published_size(name):
    summary = resnet_jax.summarize(resnet_jax.create_model(name), (224, 224, 3))
    params, mmacs = IMAGENET[name]
    assert summary.params == params
    assert summary.macs / 1e6 == pytest.approx(mmacs, abs=0.01)


@functools.cache
def cifar_summary(name):
    """Of the network as it is, but for the deepest: unrolled, that takes seconds to trace."""
    model = resnet_jax.create_model(name, scan=name == "resnet1202")
    return resnet_jax.summarize(model, (32, 32, 3))


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_nets_have_the_published_size(name):
    summary = cifar_summary(name)
    params, mmacs = CIFAR[name]
    assert summary.params == params
    assert summary.macs / 1e6 == pytest.approx(mmacs, abs=0.01)


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_option_a_shortcuts_have_no_parameters(name):
    """Table 2 of He et al. 2015: with option A, a ResNet has the parameters of its plain net."""
    summary = resnet_jax.summarize(resnet_jax.create_model(name, shortcut="A"), (224, 224, 3))
    projections = sum(c * 2 * c + 2 * 2 * c for c in (64, 128, 256))  # 1×1 kernels, scale and bias
    assert summary.params == IMAGENET[name][0] - projections


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_cifar_parameter_count_follows_the_formula(depth):
    n = (depth - 2) // 6
    stem, classifier = 9 * 3 * 16 + 2 * 16, 64 * 10 + 10
    stages = sum(2 * n * (9 * width * width + 2 * width) for width in (16, 32, 64))
    # The first convolution of stages 2 and 3 has half of the input channels.
    narrower = 9 * 16 * 32 + 9 * 32 * 64
    expected = stem + stages - narrower + classifier
    assert cifar_summary(f"resnet{depth}").params == expected


def test_macs_agree_with_the_program_that_jax_traces():
    """The counts of `summarize` come from layers; these come from the traced operations."""
    model = resnet_jax.create_model("resnet50_v1")
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    jaxpr = jax.make_jaxpr(model.apply)(variables, image)
    assert _traced_macs(jaxpr.jaxpr) == resnet_jax.summarize(model, (64, 64, 3)).macs


def _traced_macs(jaxpr) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        out = eqn.outvars[0].aval
        if eqn.primitive.name == "resnet_jax_conv":
            total += out.size * int(np.prod(eqn.invars[1].aval.shape[:-1]))
        elif eqn.primitive.name == "dot_general":
            contracted = eqn.params["dimension_numbers"][0][0]
            total += out.size * int(np.prod([eqn.invars[0].aval.shape[i] for i in contracted]))
        elif "branches" in eqn.params:  # one per platform, of which one runs
            total += _traced_macs(eqn.params["branches"][0].jaxpr)
        else:
            for value in eqn.params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    total += _traced_macs(inner)
    return total


TINY = {"stage_sizes": (1, 2), "width": 8, "num_classes": 5}


@pytest.fixture(scope="module")
def tiny():
    model = resnet_jax.create_model("resnet20", **TINY)
    images = jax.random.normal(jax.random.key(1), (6, 8, 8, 3))
    return model, model.init(jax.random.key(0), images), images


def test_apply_is_inference_by_default_and_logits_are_float32(tiny):
    model, variables, images = tiny
    logits = model.apply(variables, images)
    assert logits.shape == (6, 5)
    assert logits.dtype == jnp.float32
    # Inference treats each image on its own.
    np.testing.assert_allclose(logits[:2], model.apply(variables, images[:2]), rtol=1e-5, atol=1e-6)


def test_training_updates_statistics_and_update_stats_is_its_own_switch(tiny):
    model, variables, images = tiny
    logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
    same_logits = model.apply(variables, images, train=True, update_stats=False)
    np.testing.assert_array_equal(logits, same_logits)
    before = variables["batch_stats"]["bn1"]["mean"]
    after = updated["batch_stats"]["bn1"]["mean"]
    assert jnp.abs(after - before).max() > 1e-3
    assert jnp.abs(logits - model.apply(variables, images)).max() > 1e-3


def test_features_are_named_nhwc_and_end_in_the_logits(tiny):
    model, variables, images = tiny
    taps = model.apply(variables, images, method="features")
    shapes = {name: tap.shape for name, tap in taps.items()}
    assert shapes == {
        "stem": (6, 8, 8, 8),
        "stage1": (6, 8, 8, 8),
        "stage2": (6, 4, 4, 16),
        "pooled": (6, 16),
        "logits": (6, 5),
    }
    np.testing.assert_array_equal(taps["logits"], model.apply(variables, images))


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_at_the_ends(tiny):
    model, variables, images = tiny
    half = model.copy(dtype=jnp.bfloat16)
    taps, updated = half.apply(
        variables, images, train=True, mutable=["batch_stats"], method="features"
    )
    assert taps["stage2"].dtype == jnp.bfloat16
    assert taps["logits"].dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(updated)} == {jnp.dtype("float32")}
    exact = model.apply(variables, images, train=True, update_stats=False)
    np.testing.assert_allclose(taps["logits"], exact, atol=0.02)
    assert jnp.abs(taps["logits"] - exact).max() > 0


def test_v1_and_v1_5_share_parameters_but_not_outputs():
    fields = {"stage_sizes": (1, 1), "width": 4, "branch": "bottleneck", "stem": "cifar"}
    v1 = resnet_jax.create_model("resnet50_v1", **fields)
    v15 = resnet_jax.create_model("resnet50", **fields)
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    variables = v1.init(jax.random.key(0), images)
    shapes = jax.tree.map(jnp.shape, variables)
    assert shapes == jax.tree.map(jnp.shape, jax.eval_shape(v15.init, jax.random.key(0), images))
    one, other = (m.apply(variables, images, method="features") for m in (v1, v15))
    np.testing.assert_allclose(one["stage1"], other["stage1"], rtol=1e-5, atol=1e-6)
    assert jnp.abs(one["stage2"] - other["stage2"]).max() > 1e-3


def test_option_a_subsamples_and_pads_with_zeros():
    block = ResidualBlock(BlockConfig(shortcut="A"), width=7, stride=2)
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 3))
    y = block.apply({}, x, method="_identity")
    assert y.shape == (2, 3, 3, 7)
    np.testing.assert_array_equal(y[..., :3], x[:, ::2, ::2])
    assert not y[..., 3:].any()


def test_zero_initialised_scale_makes_each_unit_begin_as_its_shortcut():
    model = resnet_jax.create_model("resnet20", **TINY | {"zero_init_scale": True})
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    variables = model.init(jax.random.key(0), images)
    taps = model.apply(variables, images, method="features")
    np.testing.assert_array_equal(taps["stage1"], taps["stem"])
    scales = {
        path[-2].key: bool(leaf.any())
        for path, leaf in jax.tree.leaves_with_path(variables["params"])
        if path[-1].key == "scale" and path[0].key == "layer1_0"
    }
    assert scales == {"bn1": True, "bn2": False}


def test_initial_kernels_have_the_variance_of_he_et_al():
    model = resnet_jax.create_model("resnet20", stage_sizes=(1,), width=64)
    variables = resnet_jax.init_variables(model, jax.random.key(0), (8, 8, 3))
    kernel = variables["params"]["layer1_0"]["conv1"]["kernel"]
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.02)
    assert jnp.abs(kernel).max() > 3.5 * kernel.std()  # not truncated


def test_init_variables_equals_init(tiny):
    model, variables, _ = tiny
    ours = resnet_jax.init_variables(model, jax.random.key(0), (8, 8, 3))
    assert jax.tree.structure(ours) == jax.tree.structure(variables)
    for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(variables), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)


def test_unknown_names_fields_and_values_suggest_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'resnet50'"):
        resnet_jax.create_model("resnt50")
    with pytest.raises(ConfigError, match="Did you mean 'shortcut'"):
        resnet_jax.create_model("resnet50", shortcuts="A")
    with pytest.raises(ConfigError, match=r"model.shortcut is 'E'; it can be none, A"):
        resnet_jax.create_model("resnet50", shortcut="E")
    with pytest.raises(ConfigError, match=r"model.dtype is 'int8'"):
        resnet_jax.create_model("resnet50", dtype="int8")


def test_num_classes_0_takes_the_head_away_with_its_dropout():
    model = resnet_jax.create_model("resnetrs50", stage_sizes=(1, 1), width=8)
    assert model.head_dropout
    body = model.copy(num_classes=0)
    variables = resnet_jax.init_variables(body, jax.random.key(0), (32, 32, 3))
    assert "fc" not in variables["params"]
    images = jnp.ones((1, 32, 32, 3))
    taps = body.apply(variables, images, method="features")
    assert "logits" not in taps
    pooled = body.apply(variables, images)
    assert pooled.shape == (1, 64)
    np.testing.assert_array_equal(pooled, taps["pooled"])


@pytest.mark.parametrize("name", ["vgg11", "highway19", "alphagozero19"])
def test_networks_that_cannot_do_without_a_head_refuse_num_classes_0(name):
    with pytest.raises(ConfigError, match="model.num_classes is 0; it takes integers from 1 up"):
        resnet_jax.create_model(name, num_classes=0)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.array, jnp.int32])
def test_integers_of_other_types_are_pythons(kind):
    fields = {"num_classes": 10, "width": 4, "stage_sizes": (1, 2), "output_stride": 1}
    given = {name: kind(value) for name, value in fields.items() if name != "stage_sizes"}
    given["stage_sizes"] = tuple(kind(units) for units in fields["stage_sizes"])
    model = resnet_jax.create_model("resnet20", **given)
    for name, value in fields.items():
        assert getattr(model, name) == value
        assert type(getattr(model, name)) is type(value)
    assert all(type(units) is int for units in model.stage_sizes)
    plain = resnet_jax.create_model("resnet20", **fields)
    assert model == plain
    assert hash(model) == hash(plain)
    assert model.copy(width=kind(8)) == plain.copy(width=8)


@pytest.mark.parametrize("value", [True, np.bool_(True), 10.0, np.float64(10), np.ones(2, int)])
def test_what_is_no_integer_is_refused(value):
    for field in ("num_classes", "bn_group_size"):
        with pytest.raises(ConfigError, match=f"model.{field} is .*; it takes integers from"):
            resnet_jax.create_model("resnet20", **{field: value})
    with pytest.raises(ConfigError, match="model.stage_sizes is .*; it takes integers from 1 up"):
        resnet_jax.create_model("resnet20", stage_sizes=(1, value))


def test_list_models_takes_a_pattern():
    assert resnet_jax.list_models("resnet3*") == [
        "resnet32",
        "resnet34",
        "resnet34_v1",
        "resnet34d",
    ]
    assert set(resnet_jax.list_models()) == set(PRESETS)
    assert len(PRESETS) >= 90


@pytest.mark.parametrize("shortcut", ["A", "A_middle", "A_pool"])
def test_a_shortcut_that_only_adds_channels_needs_a_narrow_stem(shortcut):
    with pytest.raises(ConfigError, match=r"model.stem_width is 32, more than the 16 channels"):
        resnet_jax.create_model("resnet20", shortcut=shortcut, stem_width=32)
    resnet_jax.create_model("resnet20", shortcut="B", stem_width=32)
    model = resnet_jax.create_model("resnet20", shortcut=shortcut, stem_width=8)
    resnet_jax.init_variables(model, jax.random.key(0), (8, 8, 3))
