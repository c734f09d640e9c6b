"""The fields that each published training recipe sets."""

import dataclasses
from typing import Any

Fields = dict[str, Any]
"""Fields of a config and their values, by section as in a config."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A published training recipe.

    Attributes:
        source: who published it, and which form of it this is.
        published: top-1 accuracy that its authors report; "" if unknown.
        parts: fields of a config, set one after the other.
        data: the data set that it was published for.
    """

    source: str
    published: str
    parts: tuple[Fields, ...]
    data: str = "imagenet2012"


def _recipe(source: str, published: str, *parts: Fields) -> Recipe:
    return Recipe(source, published, parts)


def _cifar_recipe(source: str, published: str, *parts: Fields) -> Recipe:
    return Recipe(source, published, parts, data="cifar10")


_DEEP_LEARNING_EXAMPLES = "NVIDIA's DeepLearningExamples, PyTorch/Classification/ConvNets"
_STRIKES_BACK = "Wightman et al. 2021 (2110.00476), ResNet strikes back"
_FFCV = "Leclerc et al. 2022, libffcv/ffcv-imagenet, rn50_configs, without BlurPool"


def peak(rate: float, *, batch: int, warmup: float = 0.0, reference: int | None = None) -> Fields:
    """A learning rate for a batch, or for a `reference` batch, after `warmup` epochs."""
    rates = {"base_lr": rate, "reference_batch": reference or batch, "warmup": warmup}
    return {"batch_size": batch, "schedule": rates}


def _steps(*boundaries: float) -> Fields:
    """Divide the learning rate by 10 at each boundary, in epochs."""
    scales = tuple(10.0**-i for i in range(len(boundaries) + 1))
    return {"schedule": {"name": "step", "boundaries": boundaries, "scales": scales}}


def _sizes(train: int, *, crop: int, resize: int) -> Fields:
    """Pixels per side of training images, of the centre crop, and of the shorter side before it."""
    return {"data": {"image_size": train, "eval_size": crop, "eval_resize": resize}}


_NO_NORM: Fields = {"optimizer": {"decay_exempt": ("norm",)}}
_ONLY_KERNELS: Fields = {"optimizer": {"decay_exempt": ("norm", "bias")}}


def _nvidia(epochs: float) -> tuple[Fields, ...]:
    """NVIDIA's DeepLearningExamples, PyTorch/Classification/ConvNets/configs.yml.

    Their `last_bn_0_init` is False: the last scale of a branch starts at 1.
    """
    own = {
        "duration": epochs,
        "optimizer": {"momentum": 0.875, "weight_decay": 1 / 32768},
        "label_smoothing": 0.1,
    }
    return peak(0.256, batch=2048, warmup=8.0, reference=256), _NO_NORM, own


def _rsb(rate: float, *, epochs: float, decay: float, magnitude: float) -> tuple[Fields, ...]:
    """Wightman et al. 2021 (2110.00476), table 2, as timm trains it.

    Section 3.1: a mixed image belongs to both classes, whose targets are 1. timm's train.py and
    timm/loss/binary_cross_entropy.py (`--bce-loss --bce-target-thresh 0.2`) smooth and mix targets
    before the threshold: A1's label smoothing only moves the share that counts, to 0.222.
    """
    own = {
        "duration": epochs,
        "model": {"zero_init_scale": True},
        "optimizer": {
            "name": "lamb",
            "epsilon": 1e-6,
            "decay": "decoupled",
            "clip_norm": 1.0,  # the default of timm's and Apex's LAMB
            "weight_decay": decay,
        },
        "loss": "bce",
        "bce_threshold": 0.2,
        "data": {
            **{"policy": "randaugment", "magnitude": magnitude, "magnitude_std": 0.5},
            "eval_resize": 235,  # a crop of 95 %
            "interpolation": "bicubic",
        },
        "mixup": 0.1,
        "cutmix": 1.0,
    }
    return peak(rate, batch=2048, warmup=5.0), _ONLY_KERNELS, own


_RSB_DEPTH: Fields = {
    "model": {"stochastic_depth": 0.05, "stochastic_depth_mode": "example"},
    "data": {"repeats": 3},
}


def _mosaic(*, epochs: float, smoothing: float) -> tuple[Fields, ...]:
    """MosaicML's recipes of 2022, without BlurPool and their initial biases and scales.

    mosaicml/examples, examples/resnet_imagenet: all parameters decay, and binary cross-entropy is
    summed over classes (composer/loss/loss.py). Image sizes grow in four steps between 40 % and
    80 % of the run; MosaicML's grow by 4 pixels at a time. Their weight decay is multiplied by the
    learning rate over its peak.
    """
    edges = (0.47 * epochs, 0.6 * epochs, 0.8 * epochs)
    own = {
        "duration": epochs,
        "optimizer": {"momentum": 0.875, "decay": "decoupled", "weight_decay": 5e-4 / 2.048},
        "loss": "bce_sum",
        "label_smoothing": smoothing,
        "data": {"early_sizes": (88, 112, 144), "size_boundaries": edges},
        "ema_decay": 2 ** (-20 / 100),  # a half-life of 100 steps
        "ema_every": 20,
    }
    return peak(2.048, batch=2048, warmup=8.0), _sizes(176, crop=224, resize=232), own


def _ffcv(epochs: float, *, enlarged: float) -> tuple[Fields, ...]:
    """Leclerc et al. 2022, libffcv/ffcv-imagenet, rn50_configs; without BlurPool.

    `enlarged` is the first epoch of 192 pixels: the middle between their `start_ramp` and
    `end_ramp`, rounded up (`get_resolution` in train_imagenet.py). They score at 256 pixels, with
    the mean of the logits of an image and of its mirror image.
    """
    own = {
        "duration": epochs,
        "schedule": {"name": "linear"},
        "optimizer": {"weight_decay": 1e-4},
        "label_smoothing": 0.1,
        "data": {"early_sizes": (160,), "size_boundaries": (enlarged,)},
    }
    # Their crop of 224 in 256.
    sizes = _sizes(192, crop=256, resize=292)
    return peak(1.7, batch=4096, warmup=2.0), sizes, _NO_NORM, own


def _cifar(*, epochs: float, decay: float) -> Fields:
    """What recipes that were published for CIFAR-10 have in common."""
    optimizer = {"nesterov": True, "weight_decay": decay}
    return peak(0.1, batch=128) | {"duration": epochs, "optimizer": optimizer}


RECIPES: dict[str, Recipe] = {
    "he_2015": _recipe(
        "He et al. 2015 (1512.03385), as fb.resnet.torch and torchvision (V1) train it",
        "76.13 % (torchvision) for ResNet-50 v1.5, 77.56 % (fb.resnet.torch) for ResNet-101",
        peak(0.1, batch=256),
        _steps(30.0, 60.0),
        {"duration": 90.0, "optimizer": {"weight_decay": 1e-4}},
    ),
    # Groups of 32 are the paper's images per GPU, on any number of devices.
    "goyal_2017": _recipe(
        "Goyal et al. 2017 (1706.02677), section 5.1: large batches",
        "76.26 % for ResNet-50, 5 runs",
        peak(0.1, batch=8192, warmup=5.0, reference=256),
        _steps(30.0, 60.0, 80.0),
        _NO_NORM,
        {
            "schedule": {"warmup_from": 256 / 8192},  # at 0.1
            "eval_batch_size": 8192,
            "duration": 90.0,
            "model": {"zero_init_scale": True, "bn_group_size": 32},
            "optimizer": {"nesterov": True, "weight_decay": 1e-4},
        },
    ),
    "bag_of_tricks": _recipe(
        "He et al. 2018 (1812.01187), table 6, without distillation; model resnet50d",
        "79.15 % for ResNet-50-D",
        peak(0.1, batch=1024, warmup=5.0, reference=256),
        _ONLY_KERNELS,
        {
            "duration": 200.0,
            "model": {"zero_init_scale": True},
            "optimizer": {"nesterov": True, "weight_decay": 1e-4},
            "label_smoothing": 0.1,
            "mixup": 0.2,
        },
    ),
    "nvidia_50": _recipe(_DEEP_LEARNING_EXAMPLES, "75.81 ± 0.08 % for ResNet-50", *_nvidia(50.0)),
    "nvidia_90": _recipe(_DEEP_LEARNING_EXAMPLES, "77.12 ± 0.11 % for ResNet-50", *_nvidia(90.0)),
    "nvidia_250": _recipe(
        f"{_DEEP_LEARNING_EXAMPLES}, with mixup",
        "78.43 ± 0.11 % for ResNet-50",
        *_nvidia(250.0),
        {"mixup": 0.2},
    ),
    "mlperf_lars": _recipe(
        "MLPerf Training v4.0, closed division, NVIDIA's config_DGXH100.sh",
        "75.9 % for ResNet-50 after 35 epochs",
        peak(11.0, batch=3200, warmup=2.0),
        _ONLY_KERNELS,
        {
            "schedule": {"name": "poly", "power": 2.0, "final": 1e-4 / 11.0},
            "duration": 37.0,
            # The benchmark ends at the first score of the target.
            "data": {"random_crop_area": (0.05, 1.0), "validation": "validation", "test": ""},
            "optimizer": {"name": "lars", "trust_coefficient": 0.001, "weight_decay": 5e-5},
            "label_smoothing": 0.1,
            "eval_every": 4.0,
        },
    ),
    "rsb_a1": _recipe(
        f"{_STRIKES_BACK}, A1",
        "80.4 % for ResNet-50",
        *_rsb(5e-3, epochs=600.0, decay=0.01, magnitude=7.0),
        _RSB_DEPTH,
        {"mixup": 0.2, "label_smoothing": 0.1},
    ),
    "rsb_a2": _recipe(
        f"{_STRIKES_BACK}, A2",
        "79.8 % for ResNet-50",
        *_rsb(5e-3, epochs=300.0, decay=0.02, magnitude=7.0),
        _RSB_DEPTH,
    ),
    "rsb_a3": _recipe(
        f"{_STRIKES_BACK}, A3: trained at 160 pixels, scored at 224",
        "78.1 % for ResNet-50",
        *_rsb(8e-3, epochs=100.0, decay=0.02, magnitude=6.0),
        _sizes(160, crop=224, resize=235),
    ),
    "torchvision_v2": _recipe(
        "torchvision's second weights (pytorch/vision #3995)",
        "80.858 % for ResNet-50",
        peak(0.5, batch=1024, warmup=5.0),
        _sizes(176, crop=224, resize=232),
        _NO_NORM,
        {
            "schedule": {"warmup_from": 0.01},
            "duration": 600.0,
            "optimizer": {"weight_decay": 2e-5},
            "data": {"policy": "trivial", "random_erasing": 0.1, "repeats": 4},
            "mixup": 0.2,
            "cutmix": 1.0,
            "label_smoothing": 0.1,
            # Its 0.99998 is adjusted to the batch, the interval and the epochs.
            "ema_decay": 1 - 2e-5 * 1024 * 32 / 600,
            "ema_every": 32,
        },
    ),
    # tensorflow/tpu, models/official/resnet: resnet_rs/configs, and resnet_main.py for the rest.
    "resnet_rs": _recipe(
        "Bello et al. 2021 (2103.07579), for resnetrs50; theirs has running statistics of the last"
        " batch alone",
        "78.8 % for ResNet-RS-50 at 160 pixels",
        peak(0.1, batch=4096, warmup=5.0, reference=256),
        _NO_NORM,
        {
            "duration": 350.0,
            "optimizer": {"nesterov": True, "weight_decay": 4e-5},
            "data": {"image_size": 160, "eval_resize": 192},
            "label_smoothing": 0.1,
            "ema_decay": 0.9999,
        },
        {"data": {"policy": "randaugment", "magnitude": 10.0}},
    ),
    "mosaic_mild": _recipe(
        "MosaicML's ResNet recipes (2022), mild, without BlurPool",
        "about 76.19 % for ResNet-50",
        *_mosaic(epochs=36.0, smoothing=0.08),
    ),
    "mosaic_medium": _recipe(
        "MosaicML's ResNet recipes (2022), medium, without BlurPool; SAM at every tenth step",
        "",
        *_mosaic(epochs=135.0, smoothing=0.1),
        {"mixup": 0.2, "sam_radius": 0.5, "sam_every": 10},
    ),
    "ffcv_16": _recipe(
        _FFCV,
        "73.8 % for ResNet-50",
        *_ffcv(16.0, enlarged=12.0),  # between 11 and 13
    ),
    "ffcv_88": _recipe(
        _FFCV,
        "78.4 % for ResNet-50",
        *_ffcv(88.0, enlarged=71.0),  # between 65 and 76
    ),
    # They pad by reflection, not with zeros.
    "wide_resnet": _cifar_recipe(
        "Zagoruyko & Komodakis 2016 (1605.07146)",
        "96.00 % for wrn28_10, median of 5 runs",
        _cifar(epochs=200.0, decay=5e-4),
        _steps(60.0, 120.0, 160.0),
        {"schedule": {"scales": (1.0, 0.2, 0.04, 0.008)}},
    ),
    # The release prefers original blocks and batches of 128 to the paper's.
    "resnext_cifar": _cifar_recipe(
        "Xie et al. 2016 (1611.05431), as the authors' release trains it: batches of 128",
        "96.35 % for resnext29_8x64d, mean of 10 runs, in the paper: pre-activated, batches of 256",
        _cifar(epochs=300.0, decay=5e-4),
        _steps(150.0, 225.0),
    ),
    "stochastic_depth": _cifar_recipe(
        "Huang et al. 2016 (1603.09382); the best checkpoint on validation",
        "94.77 % for resnet110_sd",
        _cifar(epochs=500.0, decay=1e-4),
        _steps(250.0, 375.0),
    ),
    # With the defaults of hongyi-zhang/Fixup, cifar/cifar_train.py; there mixup has one share for a
    # whole batch.
    "fixup": _cifar_recipe(
        "Zhang et al. 2019 (1901.09321)",
        "92.76 % for fixup_resnet110",
        _cifar(epochs=200.0, decay=1e-4),
        _steps(100.0, 150.0),
        {"optimizer": {"nesterov": False, "scalar_rate": 0.1}, "mixup": 1.0},
    ),
}
"""The recipes by name."""
