"""The published networks, one table row each, by family."""

import dataclasses
from typing import Any

from resnet_jax.models.alphago import AlphaGoZero
from resnet_jax.models.highway import HighwayNet
from resnet_jax.models.network import Network
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.vgg import VGG
from resnet_jax.utils.registry import Registry


@dataclasses.dataclass(frozen=True)
class Preset:
    """A network that has a name.

    Attributes:
        build: its class.
        fields: the fields that differ from the class's defaults.
        image_shape: (h, w, c) of the images that its paper trained on.
    """

    build: type[Network]
    fields: dict[str, Any]
    image_shape: tuple[int, int, int] = (224, 224, 3)


# Depth: (branch, blocks per stage). Table 1 of He et al. 2015 (1512.03385); 200 from He et al. 2016
# (1603.05027). 10, 14 and 26 are timm's, one or two blocks per stage.
_IMAGENET: dict[int, tuple[str, tuple[int, ...]]] = {
    10: ("basic", (1, 1, 1, 1)),
    14: ("bottleneck", (1, 1, 1, 1)),
    18: ("basic", (2, 2, 2, 2)),
    26: ("bottleneck", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
    200: ("bottleneck", (3, 24, 36, 3)),
}


def _imagenet(depth: int, **fields: Any) -> Preset:
    branch, blocks = _IMAGENET[depth]
    return Preset(ResNet, {"stage_sizes": blocks, "branch": branch, **fields})


def _cifar(blocks: int, **fields: Any) -> Preset:
    """Three stages on 32×32 images: section 4.2 of He et al. 2015."""
    small = {"stage_sizes": (blocks,) * 3, "num_classes": 10, "stem": "cifar", "width": 16}
    return Preset(ResNet, small | fields, (32, 32, 3))


def _post_activation() -> dict[str, Preset]:
    table: dict[str, Preset] = {}
    for depth, (branch, _) in _IMAGENET.items():
        v1 = {"stride_on": "1x1"} if branch == "bottleneck" else {}
        table[f"resnet{depth}"] = _imagenet(depth)
        table[f"resnet{depth}_v1"] = _imagenet(depth, **v1)
        table[f"resnet{depth}d"] = _imagenet(depth, stem="deep", shortcut="D")
    # timm's "tiered" stem of the two smallest.
    for depth in (10, 14, 26):
        table[f"resnet{depth}t"] = _imagenet(
            depth, stem="deep", shortcut="D", deep_stem_widths=(24, 32)
        )
    for depth in (50, 101, 152):
        table[f"resnet{depth}c"] = _imagenet(depth, stem="deep")
    for depth in (18, 34):
        table[f"plain{depth}"] = _imagenet(depth, shortcut="none")
    table["resnet50_gn"] = _imagenet(50, norm="group")
    # 6n + 2 layers: the stem, three stages of n blocks with two convolutions, the classifier.
    for depth in (20, 32, 44, 56, 110, 1202):
        table[f"resnet{depth}"] = _cifar((depth - 2) // 6, shortcut="A")
    for depth in (20, 32, 44, 56, 110):
        table[f"plain{depth}"] = _cifar((depth - 2) // 6, shortcut="none")
    # 9n + 2 layers; He et al. 2016, table 2.
    table["resnet164"] = _cifar(18, branch="bottleneck", stride_on="1x1")
    for depth in (110, 1202):  # Huang et al. 2016 (1603.09382)
        table[f"resnet{depth}_sd"] = _cifar(
            (depth - 2) // 6, shortcut="A_pool", stochastic_depth=0.5
        )
    return table


def _pre_activation() -> dict[str, Preset]:
    """He et al. 2016 (1603.05027) and Zagoruyko & Komodakis 2016 (1605.07146)."""
    table = {
        f"preresnet{depth}": _imagenet(depth, order="preact")
        for depth in (18, 34, 50, 101, 152, 200)
    }
    for depth in (20, 32, 44, 56, 110):
        table[f"preresnet{depth}"] = _cifar((depth - 2) // 6, order="preact", shortcut="A")
    for depth in (164, 1001):
        table[f"preresnet{depth}"] = _cifar(
            (depth - 2) // 9, order="preact", branch="bottleneck", stride_on="1x1"
        )
    for depth, factor in (
        (16, 4), (16, 8), (16, 10), (22, 8), (22, 10), (28, 2), (28, 10), (28, 12),
        (40, 1), (40, 2), (40, 4), (40, 8), (40, 10),
    ):  # fmt: skip
        table[f"wrn{depth}_{factor}"] = _cifar(
            (depth - 4) // 6, order="preact", width=16 * factor, stem_width=16
        )
    # The authors' code has no normalisation between the stem and the first block's shortcut. That
    # makes a difference only where this block doesn't project: for a factor of 1. `wrn40_1` has the
    # normalisation, as He et al. 2016 have it; the authors' weights need stem_norm=False.
    table["wrn16_1"] = _cifar(2, order="preact", width=16, stem_norm=False)
    table["wrn16_2"] = _cifar(2, order="preact", width=32, stem_width=16)
    return table


def _wide_grouped_and_excited() -> dict[str, Preset]:
    table = {
        "wrn50_2": _imagenet(50, group_width=128),
        "wrn101_2": _imagenet(101, group_width=128),
    }
    # Xie et al. 2016 (1611.05431): cardinality × width of each group.
    for depth, groups, group_width in ((50, 32, 4), (101, 32, 4), (101, 32, 8), (101, 64, 4)):
        table[f"resnext{depth}_{groups}x{group_width}d"] = _imagenet(
            depth, groups=groups, group_width=group_width
        )
    for groups in (8, 16):
        table[f"resnext29_{groups}x64d"] = _cifar(
            3, branch="bottleneck", width=64, groups=groups, group_width=64
        )
    # Hu et al. 2017 (1709.01507); the released SE-ResNets are v1, the SE-ResNeXts v1.5.
    for depth in (50, 101, 152):
        table[f"seresnet{depth}"] = _imagenet(depth, se_ratio=1 / 16)
        table[f"seresnet{depth}_v1"] = _imagenet(depth, se_ratio=1 / 16, stride_on="1x1")
        table[f"seresnext{depth}_32x4d"] = _imagenet(
            depth, se_ratio=1 / 16, groups=32, group_width=4
        )
    return table


def _modern() -> dict[str, Preset]:
    table: dict[str, Preset] = {}
    # Kolesnikov et al. 2019 (1912.11370), "BiT".
    for depth, factor in ((50, 1), (50, 3), (101, 1), (101, 3), (152, 2), (152, 4)):
        table[f"bit_r{depth}x{factor}"] = _imagenet(
            depth,
            order="preact",
            norm="group",
            weight_standardized=True,
            stem_norm=False,
            width=64 * factor,
        )
    # Bello et al. 2021 (2103.07579): depth, image size, blocks, stochastic depth.
    for depth, size, blocks, drop in (
        (50, 160, (3, 4, 6, 3), 0.0),
        (101, 192, (3, 4, 23, 3), 0.0),
        (152, 256, (3, 8, 36, 3), 0.0),
        (200, 256, (3, 24, 36, 3), 0.1),
        (270, 256, (4, 29, 53, 4), 0.1),
        (350, 256, (4, 36, 72, 4), 0.1),
        (420, 320, (4, 44, 87, 4), 0.1),
    ):
        fields: dict[str, Any] = {
            "stage_sizes": blocks,
            "branch": "bottleneck",
            "stem": "deep",
            "stem_pool": "conv",
            "shortcut": "D",
            "se_ratio": 0.25,
            "zero_init_scale": True,
            "head_dropout": 0.4 if size == 320 else 0.25,
        }
        if drop:
            fields |= {"stochastic_depth": drop, "stochastic_depth_mode": "example"}
        table[f"resnetrs{depth}"] = Preset(ResNet, fields, (size, size, 3))
    # Zhang et al. 2019 (1901.09321).
    for depth in (18, 34, 50, 101, 152):
        table[f"fixup_resnet{depth}"] = _imagenet(depth, norm="fixup")
    for depth in (20, 32, 44, 56, 110):
        table[f"fixup_resnet{depth}"] = _cifar((depth - 2) // 6, norm="fixup", shortcut="A")
    return table


def _relatives() -> dict[str, Preset]:
    table: dict[str, Preset] = {}
    for depth, convolutions in (
        (11, (1, 1, 2, 2, 2)),
        (13, (2, 2, 2, 2, 2)),
        (16, (2, 2, 3, 3, 3)),
        (19, (2, 2, 4, 4, 4)),
    ):
        table[f"vgg{depth}"] = Preset(VGG, {"stage_sizes": convolutions})
        table[f"vgg{depth}_bn"] = Preset(VGG, {"stage_sizes": convolutions, "norm": "batch"})
    table["highway19"] = Preset(
        HighwayNet, {"stage_sizes": (4, 5, 5), "stage_widths": (32, 80, 128)}, (32, 32, 3)
    )
    # The paper gives depth and size, 1.25 million, but no list of layers: this one is inferred.
    table["highway32"] = Preset(
        HighwayNet, {"stage_sizes": (7, 10, 10), "stage_widths": (24, 56, 56)}, (32, 32, 3)
    )
    for blocks in (19, 39):
        table[f"alphagozero{blocks}"] = Preset(AlphaGoZero, {"units": blocks}, (19, 19, 17))
    return table


PRESETS = Registry(
    "preset",
    {
        **_post_activation(),
        **_pre_activation(),
        **_wide_grouped_and_excited(),
        **_modern(),
        **_relatives(),
    },
)
"""Every preset by its name: the values that `model.name` can have."""
