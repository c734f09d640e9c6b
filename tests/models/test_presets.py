"""Every preset against counts that others made, and the laws that tie presets to one another."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import resnet_jax
from resnet_jax.models.presets import PRESETS
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.sizes import preset_sizes
from resnet_jax.train.optimizer import parameter_groups

# Parameters, and multiply-adds of one 224×224 image, counted in PyTorch by forward hooks on the
# modules of torchvision and timm: convolutions and fully connected layers, without biases.
PEERS = json.loads((Path(__file__).parents[1] / "golden" / "peer_counts.json").read_text())

# Parameters of networks that have no module in those packages, by arithmetic on the layers of the
# authors' code (KaimingHe/resnet-1k-layers, szagoruyko/wide-residual-networks,
# flukeskywalker/highway-networks), and as their papers round them, in millions.
AUTHORS = {
    "preresnet164": (1_703_258, 1.7),
    "preresnet1001": (10_327_706, 10.3),  # the paper says 10.2
    "wrn40_1": (563_930, 0.6),
    "wrn40_2": (2_243_546, 2.2),
    "wrn40_4": (8_949_210, 8.9),
    "wrn40_8": (35_748_314, 35.7),
    "wrn28_10": (36_479_194, 36.5),
    "wrn28_12": (52_517_850, 52.5),
    "wrn22_8": (17_158_106, 17.2),
    "wrn22_10": (26_797_914, 26.8),
    # Others count 175,994 for the first, with its 928 running means and variances.
    "wrn16_1": (175_066, None),
    "wrn16_2": (691_674, None),
    "wrn16_8": (10_961_370, 11.0),
    "wrn16_10": (17_116_634, 17.1),
    "resnext29_8x64d": (34_426_698, 34.4),
    "resnext29_16x64d": (68_155_210, 68.2),  # 68.1 in the paper
    "highway19": (2_256_838, 2.3),
    "highway32": (1_251_926, 1.25),  # the list of layers is inferred
    "alphagozero19": (22_827_877, None),
    "alphagozero39": (46_441_317, None),
}


def count(name: str, size: int | None = None):
    """Summarise the scanned form where there is one: the same counts in a fraction of the time."""
    preset = PRESETS[name]
    model = resnet_jax.create_model(name, **({"scan": True} if preset.build is ResNet else {}))
    h, w, c = preset.image_shape
    return resnet_jax.summarize(model, (size or h, size or w, c))


@pytest.mark.parametrize("name", PEERS)
def test_parameters_and_macs_are_the_peers(name):
    summary = count(name, 224)
    assert (summary.params, summary.macs) == (PEERS[name]["params"], PEERS[name]["macs"])


@pytest.mark.parametrize("name", AUTHORS)
def test_parameters_are_the_authors(name):
    params, published = AUTHORS[name]
    assert count(name).params == params
    if published is not None:
        assert params / 1e6 == pytest.approx(published, abs=0.06)


def test_a_scanned_network_has_the_sizes_of_the_unrolled_one():
    """`nn.scan` shows a loop's layers once, whatever its length."""
    scanned, unrolled = (
        resnet_jax.summarize(resnet_jax.create_model("resnet56", scan=scan), (32, 32, 3))
        for scan in (True, False)
    )
    assert scanned == unrolled


def test_the_table_of_sizes_has_every_preset_and_the_counts_of_others():
    sizes = preset_sizes()
    assert list(sizes) == resnet_jax.list_models()
    for name, (params, _) in AUTHORS.items():
        assert sizes[name].params == params
    for name, peer in PEERS.items():
        if PRESETS[name].image_shape == (224, 224, 3):
            assert sizes[name] == (peer["params"], peer["macs"])


@pytest.mark.thorough
@pytest.mark.parametrize("name", PRESETS)
def test_the_table_of_sizes_is_counted(name):
    """If it isn't, `python benchmarks/sizes.py` counts again."""
    summary = count(name)
    assert preset_sizes()[name] == (summary.params, summary.macs)


def test_wide_networks_of_factor_1_are_the_authors_at_the_first_block():
    """Their first block's shortcut takes what the stem gives, before any normalisation."""
    model = resnet_jax.create_model("wrn16_1")
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert "bn1" in shapes["params"]["layer1_0"]
    assert "bn1" not in shapes["params"]
    statistics = sum(leaf.size for leaf in jax.tree.leaves(shapes["batch_stats"]))
    assert count("wrn16_1").params + statistics == 175_994


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_a_plain_cifar_net_is_the_residual_one_without_shortcuts(depth):
    """Section 4.2 of He et al. 2015: option A has no parameters, nor multiply-adds."""
    plain, residual = count(f"plain{depth}"), count(f"resnet{depth}")
    assert (plain.params, plain.macs) == (residual.params, residual.macs)


def test_a_plain_imagenet_net_is_the_residual_one_without_projections():
    projections = sum(c * 2 * c + 2 * 2 * c for c in (64, 128, 256))
    for depth in (18, 34):
        assert count(f"plain{depth}").params == count(f"resnet{depth}").params - projections


def test_stochastic_depth_and_v1_change_no_parameters():
    assert count("resnet110_sd").params == count("resnet110").params
    for name in ("resnet50", "seresnet101"):
        assert count(f"{name}_v1").params == count(name).params
        assert count(f"{name}_v1").macs < count(name).macs


def test_fixup_has_scalars_in_the_place_of_normalisation():
    """A block of two convolutions has four biases and one scale; the network two more biases."""
    kernels = 9 * 3 * 16 + 64 * 10 + 10
    kernels += sum(6 * 9 * w * w for w in (16, 32, 64)) - 9 * 16 * 32 - 9 * 32 * 64
    assert count("fixup_resnet20").params == kernels + 9 * 5 + 2


@pytest.mark.thorough
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_built_and_each_parameter_is_in_one_group(name):
    preset = PRESETS[name]
    fields = {"stage_sizes": tuple(min(n, 2) for n in preset.fields.get("stage_sizes", ()))}
    fields = {k: v for k, v in fields.items() if v} or {"units": 2}
    model = resnet_jax.create_model(name, **fields)
    image = jax.ShapeDtypeStruct((1, *preset.image_shape), jnp.float32)
    logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    assert set(jax.tree.leaves(parameter_groups(variables["params"]))) <= {"kernel", "bias", "norm"}
    assert (logits.shape, logits.dtype) == ((1, model.num_classes), jnp.float32)
