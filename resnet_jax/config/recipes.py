"""Published training recipes: each fills in a config for ImageNet, with ResNet-50 in mind.

    config = recipes.make("rsb_a2", model="resnet50")
    config = recipes.make("rsb_a2", model="resnet56", data="cifar10")

The batch of a recipe is global: devices share it, and `accumulate` makes it out of parts. On
CIFAR-10 a recipe keeps its epochs and all that regularises, but has batches of 128, crops padded
images, and lowers the learning rate: in proportion to the batch for SGD and LARS (Goyal et al.
2017), to its root for LAMB (You et al. 2019, 1904.00962). Nothing is published for that.
"""

import math
from collections.abc import Callable

from ml_collections import ConfigDict

from resnet_jax.config.schema import default_config
from resnet_jax.data.dataset_info import IMAGENET_MEAN, IMAGENET_STD
from resnet_jax.errors import ConfigError, did_you_mean

Recipe = Callable[[ConfigDict], None]

_CIFAR_BATCH = 128
_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def make(recipe: str, *, model: str = "resnet50", data: str = "imagenet2012") -> ConfigDict:
    """The config of a recipe of `RECIPES`, for a preset and "imagenet2012" or "cifar10".

    Raises:
        ConfigError: unknown recipe or data.
    """
    if recipe not in RECIPES:
        hint = did_you_mean(recipe, RECIPES)
        raise ConfigError(f"There is no recipe {recipe!r}; there are {', '.join(RECIPES)}.{hint}")
    if data not in ("imagenet2012", "cifar10"):
        raise ConfigError(f"Recipes are for imagenet2012 and cifar10, not for {data!r}.")
    config = default_config()
    config.model.name = model
    _imagenet(config)
    RECIPES[recipe](config)
    if data == "cifar10":
        _scale_to_cifar(config)
    return config


def _imagenet(config: ConfigDict) -> None:
    """What most recipes have in common."""
    config.model.dtype, data = "bfloat16", config.data
    data.name = "imagenet2012"
    data.validation, data.test = "", "validation"  # the test images have no public labels
    data.random_crop_area, data.image_size, data.eval_resize = (0.08, 1.0), 224, 256
    data.mean, data.std = IMAGENET_MEAN, IMAGENET_STD
    data.resident, data.crop_padding = False, 0
    config.eval_batch_size = 2048
    config.log_every = 50
    config.optimizer.momentum = 0.9


def _scale_to_cifar(config: ConfigDict) -> None:
    data = config.data
    data.name, data.train, data.validation = "cifar10", "train[:45000]", "train[45000:]"
    data.test, data.resident = "test", True
    data.random_crop_area, data.early_sizes, data.size_boundaries = (), (), ()
    data.image_size = data.eval_size = data.eval_resize = None
    data.interpolation = "bilinear"  # nothing is scaled
    data.mean, data.std, data.crop_padding = _CIFAR_MEAN, _CIFAR_STD, 4
    config.model.dtype = "float32"
    schedule, batch = config.schedule, _CIFAR_BATCH
    peak = schedule.base_lr * config.batch_size / schedule.reference_batch
    share = batch / config.batch_size
    if config.optimizer.name == "lamb":
        share = math.sqrt(share)
    schedule.base_lr, schedule.reference_batch, config.batch_size = peak * share, batch, batch
    config.eval_batch_size = 500
    config.steps_per_dispatch = 50


def _peak(config: ConfigDict, rate: float, *, batch: int, warmup: float) -> None:
    """A learning rate for a batch, reached after so many epochs."""
    config.batch_size = batch
    config.schedule.base_lr, config.schedule.reference_batch = rate, batch
    config.schedule.warmup = warmup


def _steps(config: ConfigDict, *boundaries: float) -> None:
    """A tenth of the learning rate from each boundary on, in epochs."""
    config.schedule.name = "step"
    config.schedule.boundaries = boundaries
    config.schedule.scales = tuple(10.0**-i for i in range(len(boundaries) + 1))


def he_2015(config: ConfigDict) -> None:
    """He et al. 2015 (1512.03385) as fb.resnet.torch and torchvision (V1) train it.

    EXPECTED: 76.0 % (fb.resnet.torch), 76.13 % (torchvision) for ResNet-50 v1.5.
    """
    _peak(config, 0.1, batch=256, warmup=0.0)
    _steps(config, 30.0, 60.0)
    config.duration = 90.0
    config.optimizer.weight_decay = 1e-4


def goyal_2017(config: ConfigDict) -> None:
    """Goyal et al. 2017 (1706.02677), section 5.1: large batches.

    EXPECTED: 76.26 % for ResNet-50, 5 runs.
    """
    _peak(config, 0.1, batch=8192, warmup=5.0)
    config.schedule.reference_batch = 256
    config.schedule.warmup_from = 256 / 8192  # at 0.1
    _steps(config, 30.0, 60.0, 80.0)
    config.eval_batch_size = 8192
    config.duration = 90.0
    config.model.zero_init_scale = True
    config.model.bn_group_size = 32  # the paper's images per GPU, on any number of devices
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay_exempt = ("norm",)


def bag_of_tricks(config: ConfigDict) -> None:
    """He et al. 2018 (1812.01187), table 6 without distillation; `model` resnet50d.

    EXPECTED: 79.29 % for ResNet-50-D with all tricks and distillation (their table 1).
    """
    _peak(config, 0.1, batch=1024, warmup=5.0)
    config.schedule.reference_batch = 256
    config.duration = 200.0
    config.model.zero_init_scale = True
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay_exempt = ("norm", "bias")
    config.label_smoothing = 0.1
    config.mixup = 0.2


def _nvidia(config: ConfigDict, epochs: float) -> None:
    """NVIDIA's DeepLearningExamples, PyTorch/Classification/ConvNets/configs.yml.

    Their `last_bn_0_init` is False: the last scale of a branch begins at 1.
    """
    _peak(config, 0.256, batch=2048, warmup=8.0)
    config.schedule.reference_batch = 256
    config.duration = epochs
    config.optimizer.momentum = 0.875
    config.optimizer.weight_decay = 1 / 32768
    config.optimizer.decay_exempt = ("norm",)
    config.label_smoothing = 0.1


def nvidia_50(config: ConfigDict) -> None:
    """NVIDIA's DeepLearningExamples, 50 epochs. EXPECTED: 75.9 % for ResNet-50."""
    _nvidia(config, 50.0)


def nvidia_90(config: ConfigDict) -> None:
    """NVIDIA's DeepLearningExamples, 90 epochs. EXPECTED: 77.12 ± 0.11 % for ResNet-50."""
    _nvidia(config, 90.0)


def nvidia_250(config: ConfigDict) -> None:
    """NVIDIA's DeepLearningExamples, 250 epochs. EXPECTED: 78.43 ± 0.11 % for ResNet-50."""
    _nvidia(config, 250.0)
    config.mixup = 0.2


def mlperf_lars(config: ConfigDict) -> None:
    """MLPerf Training v4.0, closed division, NVIDIA's config_DGXH100.sh.

    EXPECTED: 75.9 % for ResNet-50 after 35 epochs.
    """
    _peak(config, 11.0, batch=3200, warmup=2.0)
    config.schedule.name, config.schedule.power = "poly", 2.0
    config.schedule.final = 1e-4 / 11.0
    config.duration = 37.0
    config.data.random_crop_area = (0.05, 1.0)
    config.optimizer.name = "lars"
    config.optimizer.trust_coefficient = 0.001
    config.optimizer.weight_decay = 5e-5
    config.optimizer.decay_exempt = ("norm", "bias")
    config.label_smoothing = 0.1
    config.eval_every = 4.0


def _rsb(config: ConfigDict, rate: float, *, epochs: float, decay: float, magnitude: float) -> None:
    """Wightman et al. 2021 (2110.00476), table 2, as timm trains it.

    Section 3.1: a mixed image belongs to both classes, whose targets are 1. timm's train.py and
    timm/loss/binary_cross_entropy.py (`--bce-loss --bce-target-thresh 0.2`) smooth and mix targets
    before the threshold: A1's label smoothing only moves the share that counts, to 0.222.
    """
    _peak(config, rate, batch=2048, warmup=5.0)
    config.duration = epochs
    config.model.zero_init_scale = True
    config.optimizer.name, config.optimizer.epsilon = "lamb", 1e-6
    config.optimizer.decay = "decoupled"
    config.optimizer.clip_norm = 1.0  # as timm's and Apex's LAMB do unless they're told otherwise
    config.optimizer.weight_decay = decay
    config.optimizer.decay_exempt = ("norm", "bias")
    config.loss, config.bce_threshold = "bce", 0.2
    config.data.policy = "randaugment"
    config.data.magnitude, config.data.magnitude_std = magnitude, 0.5
    config.data.eval_resize, config.data.interpolation = 235, "bicubic"  # a crop of 95 %
    config.cutmix = 1.0


def rsb_a1(config: ConfigDict) -> None:
    """ResNet strikes back, A1 (2110.00476). EXPECTED: 80.4 % for ResNet-50."""
    _rsb(config, 5e-3, epochs=600.0, decay=0.01, magnitude=7.0)
    config.mixup, config.label_smoothing = 0.2, 0.1
    config.model.stochastic_depth, config.model.stochastic_depth_mode = 0.05, "example"
    config.data.repeats = 3


def rsb_a2(config: ConfigDict) -> None:
    """ResNet strikes back, A2 (2110.00476). EXPECTED: 79.8 % for ResNet-50."""
    _rsb(config, 5e-3, epochs=300.0, decay=0.02, magnitude=7.0)
    config.mixup = 0.1
    config.model.stochastic_depth, config.model.stochastic_depth_mode = 0.05, "example"
    config.data.repeats = 3


def rsb_a3(config: ConfigDict) -> None:
    """ResNet strikes back, A3 (2110.00476): trained at 160 pixels, scored at 224.

    EXPECTED: 78.1 % for ResNet-50.
    """
    _rsb(config, 8e-3, epochs=100.0, decay=0.02, magnitude=6.0)
    config.mixup = 0.1
    config.data.image_size, config.data.eval_size = 160, 224


def torchvision_v2(config: ConfigDict) -> None:
    """torchvision's second weights (pytorch/vision #3995). EXPECTED: 80.858 % for ResNet-50."""
    _peak(config, 0.5, batch=1024, warmup=5.0)
    config.schedule.warmup_from = 0.01
    config.duration = 600.0
    config.optimizer.weight_decay = 2e-5
    config.optimizer.decay_exempt = ("norm",)
    config.data.image_size, config.data.eval_size, config.data.eval_resize = 176, 224, 232
    config.data.policy, config.data.random_erasing = "trivial", 0.1
    config.data.repeats = 4
    config.mixup, config.cutmix, config.label_smoothing = 0.2, 1.0, 0.1
    # Its 0.99998 is adjusted to the batch, the interval and the epochs.
    config.ema_decay, config.ema_every = 1 - 2e-5 * 1024 * 32 / 600, 32


def resnet_rs(config: ConfigDict) -> None:
    """Bello et al. 2021 (2103.07579); `model` resnetrs50 and up. EXPECTED: RS-50 at 160: 78.8 %.

    tensorflow/tpu, models/official/resnet: resnet_rs/configs, and resnet_main.py for the rest.
    """
    _peak(config, 0.1, batch=4096, warmup=5.0)
    config.schedule.reference_batch = 256
    config.duration = 350.0
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 4e-5
    config.optimizer.decay_exempt = ("norm",)
    config.data.image_size, config.data.eval_resize = 160, 192
    config.data.policy, config.data.magnitude = "randaugment", 10.0
    config.label_smoothing = 0.1
    config.ema_decay = 0.9999


def _mosaic(config: ConfigDict, *, epochs: float, smoothing: float) -> None:
    """MosaicML's recipes of 2022, without BlurPool and their initial biases and scales.

    mosaicml/examples, examples/resnet_imagenet: all parameters decay, and binary cross-entropy is
    summed over classes (composer/loss/loss.py). Sizes grow in four steps between 40 % and 80 % of
    the run, theirs by 4 pixels.
    """
    _peak(config, 2.048, batch=2048, warmup=8.0)
    config.duration = epochs
    config.optimizer.momentum = 0.875
    config.optimizer.decay = "decoupled"
    config.optimizer.weight_decay = 5e-4 / 2.048  # theirs is multiplied by the rate over its peak
    config.loss, config.label_smoothing = "bce_sum", smoothing
    config.data.image_size, config.data.eval_size, config.data.eval_resize = 176, 224, 232
    config.data.early_sizes = (88, 112, 144)
    config.data.size_boundaries = (0.47 * epochs, 0.6 * epochs, 0.8 * epochs)
    config.ema_decay, config.ema_every = 2 ** (-20 / 100), 20  # half gone after 100 steps


def mosaic_mild(config: ConfigDict) -> None:
    """MosaicML, mild. EXPECTED: about 76.19 % for ResNet-50 in 36 epochs."""
    _mosaic(config, epochs=36.0, smoothing=0.08)


def mosaic_medium(config: ConfigDict) -> None:
    """MosaicML, medium: with SAM at every tenth step."""
    _mosaic(config, epochs=135.0, smoothing=0.1)
    config.mixup = 0.2
    config.sam_radius, config.sam_every = 0.5, 10


def _ffcv(config: ConfigDict, epochs: float, *, enlarged: float) -> None:
    """Leclerc et al. 2022, libffcv/ffcv-imagenet, rn50_configs; without BlurPool.

    `enlarged` is the first epoch of 192 pixels: the middle between their `start_ramp` and
    `end_ramp`, rounded up (`get_resolution` in train_imagenet.py).
    """
    _peak(config, 1.7, batch=4096, warmup=2.0)
    config.schedule.name = "linear"
    config.duration = epochs
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay_exempt = ("norm",)
    config.label_smoothing = 0.1
    config.data.image_size, config.data.early_sizes = 192, (160,)
    config.data.size_boundaries = (enlarged,)
    config.data.eval_size, config.data.eval_resize = 256, 292  # their crop of 224 in 256


def ffcv_16(config: ConfigDict) -> None:
    """ffcv-imagenet, 16 epochs. EXPECTED: 73.8 %, theirs at 256 pixels and mirrored too."""
    _ffcv(config, 16.0, enlarged=12.0)  # between 11 and 13


def ffcv_88(config: ConfigDict) -> None:
    """ffcv-imagenet, 88 epochs. EXPECTED: 78.4 %, theirs at 256 pixels and mirrored too."""
    _ffcv(config, 88.0, enlarged=71.0)  # between 65 and 76


def _cifar(config: ConfigDict, *, epochs: float, decay: float) -> None:
    """What recipes that were published for CIFAR-10 have in common."""
    _peak(config, 0.1, batch=128, warmup=0.0)
    config.duration = epochs
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = decay


def wide_resnet(config: ConfigDict) -> None:
    """Zagoruyko & Komodakis 2016 (1605.07146), CIFAR-10; they pad by reflection, not with zeros.

    EXPECTED: 96.00 % for wrn28_10, median of 5 runs.
    """
    _cifar(config, epochs=200.0, decay=5e-4)
    config.schedule.name = "step"
    config.schedule.boundaries = (60.0, 120.0, 160.0)
    config.schedule.scales = (1.0, 0.2, 0.04, 0.008)


def resnext_cifar(config: ConfigDict) -> None:
    """Xie et al. 2016 (1611.05431), section 5.3, CIFAR-10.

    EXPECTED: 96.35 % for resnext29_8x64d, mean of 10 runs.
    """
    _cifar(config, epochs=300.0, decay=5e-4)
    _steps(config, 150.0, 225.0)


def stochastic_depth(config: ConfigDict) -> None:
    """Huang et al. 2016 (1603.09382), CIFAR-10, with the best checkpoint on validation.

    EXPECTED: 94.77 % for resnet110_sd.
    """
    _cifar(config, epochs=500.0, decay=1e-4)
    _steps(config, 250.0, 375.0)


def fixup(config: ConfigDict) -> None:
    """Zhang et al. 2019 (1901.09321), CIFAR-10, with the defaults of their code.

    hongyi-zhang/Fixup, cifar/cifar_train.py; there mixup has one share for a whole batch.

    EXPECTED: 92.76 % for fixup_resnet110.
    """
    _cifar(config, epochs=200.0, decay=1e-4)
    _steps(config, 100.0, 150.0)
    config.optimizer.nesterov = False
    config.optimizer.scalar_rate = 0.1
    config.mixup = 1.0


RECIPES: dict[str, Recipe] = {
    recipe.__name__: recipe
    for recipe in (
        he_2015,
        goyal_2017,
        bag_of_tricks,
        nvidia_50,
        nvidia_90,
        nvidia_250,
        mlperf_lars,
        rsb_a1,
        rsb_a2,
        rsb_a3,
        torchvision_v2,
        resnet_rs,
        mosaic_mild,
        mosaic_medium,
        ffcv_16,
        ffcv_88,
        wide_resnet,
        resnext_cifar,
        stochastic_depth,
        fixup,
    )
}
"""By name; the last four were published for CIFAR-10."""
