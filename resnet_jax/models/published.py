"""Top-1 errors that others published for the presets, each with its recipe and source.

They say which error an architecture is known to reach; they are not results of this package.
Networks whose source we couldn't read ourselves have no entry.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Published:
    """A published result.

    Attributes:
        error: top-1 error in percent.
        data: data set and how it was evaluated.
        recipe: how the network was trained, in a few words.
        source: title and address.
    """

    error: float
    data: str
    recipe: str
    source: tuple[str, str]


_HE15 = ("He et al. 2015, table 6", "https://arxiv.org/abs/1512.03385")
_HE16 = ("He et al. 2016, tables 2-4", "https://arxiv.org/abs/1603.05027")
_RELEASE = ("the authors' release", "https://github.com/KaimingHe/deep-residual-networks")
_TORCH = ("fb.resnet.torch", "https://github.com/facebookarchive/fb.resnet.torch")
_GLUON = ("GluonCV model zoo", "https://github.com/dmlc/gluon-cv")
_TIMM = ("timm results", "https://github.com/huggingface/pytorch-image-models")
_WRN = ("the authors' release", "https://github.com/szagoruyko/wide-residual-networks")
_RESNEXT = ("the authors' release", "https://github.com/facebookresearch/ResNeXt")
_SENET = ("the authors' release", "https://github.com/hujie-frank/SENet")
_TORCHVISION = ("torchvision's weights, V1", "https://github.com/pytorch/vision")
_RS = (
    "the authors' release",
    "https://github.com/tensorflow/tpu/tree/master/models/official/resnet",
)
_SD = ("the authors' release", "https://github.com/yueatsprograms/Stochastic_Depth")

_C10 = "CIFAR-10"
_CROP = "ImageNet, 224 crop"


def _rows(
    data: str, recipe: str, source: tuple[str, str], errors: dict[str, float]
) -> dict[str, Published]:
    return {name: Published(error, data, recipe, source) for name, error in errors.items()}


PUBLISHED: dict[str, Published] = {
    **_rows(
        _CROP,
        "90 epochs, scale and aspect augmentation",
        _TORCH,
        {
            "resnet18": 30.43,
            "resnet34": 26.73,
            "resnet101": 22.44,
            "resnet152": 22.16,
        },
    ),
    **_rows(
        _CROP,
        "the paper's; step schedule, scale augmentation",
        _RELEASE,
        {"resnet50_v1": 24.7, "resnet101_v1": 23.6, "resnet152_v1": 23.0},
    ),
    **_rows(
        _CROP,
        "GluonCV's, without mixup",
        _GLUON,
        {
            "resnet50c": 21.97,
            "resnet101c": 20.40,
            "resnet152c": 19.99,
            "resnet50d": 21.52,
            "resnet101d": 20.22,
            "resnet152d": 19.74,
            "resnet50_gn": 22.64,
            "resnext101_64x4d": 19.31,
        },
    ),
    **_rows(
        "ImageNet, 224",
        "timm's weights of that name (c3, ra2, bt)",
        _TIMM,
        {
            "resnet10t": 31.646,
            "resnet14t": 27.758,
            "resnet18d": 27.704,
            "resnet26": 24.702,
            "resnet26d": 23.302,
            "resnet34d": 22.892,
        },
    ),
    **_rows(
        _CROP,
        "torchvision's reference",
        _TORCHVISION,
        {
            "resnet50": 23.87,  # of fb.resnet.torch's ResNet-50, BN follows the addition
            "vgg11": 30.980,
            "vgg11_bn": 29.630,
            "vgg13": 30.072,
            "vgg13_bn": 28.414,
            "vgg16": 28.408,
            "vgg16_bn": 26.640,
            "vgg19": 27.624,
            "vgg19_bn": 25.782,
            "wrn101_2": 21.152,
            "resnext101_32x8d": 20.688,
        },
    ),
    **_rows(
        _C10,
        "64,000 steps of 128",
        _HE15,
        {
            "resnet20": 8.75,
            "resnet32": 7.51,
            "resnet44": 7.17,
            "resnet56": 6.97,
            "resnet1202": 7.93,
        },
    ),
    **_rows(_C10, "64,000 steps of 128, best of 5 (mean 6.61)", _HE15, {"resnet110": 6.43}),
    **_rows(
        _C10,
        "64,000 steps of 128, median of 5",
        _HE16,
        {
            "resnet164": 5.93,
            "preresnet110": 6.37,
            "preresnet164": 5.46,
            "preresnet1001": 4.92,
        },
    ),
    **_rows(
        "ImageNet, 320 crop",
        "the paper's, scale augmentation",
        ("He et al. 2016, table 5", "https://arxiv.org/abs/1603.05027"),
        {"preresnet152": 21.1, "preresnet200": 20.7},
    ),
    **_rows(
        _C10,
        "as quoted in that table; best of 5 for 19 layers",
        _HE15,
        {"highway19": 7.54, "highway32": 8.80},
    ),
    **_rows(_C10, "200 epochs, median of 5", _WRN, {"wrn28_10": 4.00}),
    **_rows(_CROP, "the authors'", _WRN, {"wrn50_2": 21.9}),
    **_rows(
        _CROP,
        "90 epochs, scale and aspect augmentation",
        _RESNEXT,
        {"resnext50_32x4d": 22.2, "resnext101_32x4d": 21.2},
    ),
    **_rows(
        _C10,
        "300 epochs, mean of 10; pre-activated in the paper",
        _RESNEXT,
        {"resnext29_8x64d": 3.65, "resnext29_16x64d": 3.58},
    ),
    **_rows(
        _CROP,
        "batch 256, re-trained by the authors",
        _SENET,
        {
            "seresnet50_v1": 22.37,
            "seresnet101_v1": 21.75,
            "seresnet152_v1": 21.34,
            "seresnext50_32x4d": 20.97,
            "seresnext101_32x4d": 19.81,
        },
    ),
    **_rows(_C10, "500 epochs, Nesterov, one run", _SD, {"resnet110_sd": 5.23}),
    **{
        name: Published(error, f"ImageNet, {size}", "350 epochs, RandAugment, averaging", _RS)
        for name, size, error in (
            ("resnetrs50", 160, 21.2),
            ("resnetrs101", 192, 18.8),
            ("resnetrs152", 256, 17.0),
            ("resnetrs200", 256, 16.6),
            ("resnetrs270", 256, 16.2),
            ("resnetrs350", 256, 16.0),
            ("resnetrs420", 320, 15.6),
        )
    },
    **{
        name: Published(error, f"ImageNet, {size}", "pre-trained on ImageNet-21k", _TIMM)
        for name, size, error in (
            ("bit_r50x1", 448, 19.614),
            ("bit_r50x3", 448, 16.018),
            ("bit_r101x1", 448, 17.668),
            ("bit_r101x3", 448, 15.570),
            ("bit_r152x2", 448, 15.532),
            ("bit_r152x4", 480, 15.064),
        )
    },
}
"""Name of the preset → what was published. CIFAR-10 errors are on its 10,000 test images."""
