"""ImageNet by the recipe of Goyal et al. 2017 (1706.02677), section 5.1.

90 epochs in batches of 8,192: He et al.'s recipe (1512.03385) with a learning rate in proportion
to the batch, a gradual warm-up, no weight decay of normalisation's parameters, and units that
begin as the identity. One difference from the paper: the warm-up begins at 0, not at 0.1.

COMMAND: python train.py --config=configs/imagenet.py:resnet50 --workdir=runs/imagenet
EXPECTED: 23.74 % top-1 error of the 50,000 validation images (the paper's table 1, with a batch of
8,192, median of the last 5 epochs over 5 runs); not yet run here, it needs accelerators.

COMMAND: resnet-jax compile --config=configs/imagenet.py:resnet50 --topology=v5e:16x16
EXPECTED: docs/scaling.md has the figures.
"""

from ml_collections import ConfigDict

from resnet_jax.data.known import IMAGENET_MEAN, IMAGENET_STD
from resnet_jax.errors import ConfigError, did_you_mean
from resnet_jax.train.config import default_config


def get_config(arg: str = "resnet50") -> ConfigDict:
    """`imagenet.py:MODEL` is the paper's recipe; `MODEL,whole` normalises over the whole batch."""
    model, *variants = arg.split(",")
    for variant in variants:
        if variant != "whole":
            hint = did_you_mean(variant, ["whole"])
            raise ConfigError(
                f"configs/imagenet.py has no variant {variant!r}, only 'whole'.{hint}"
            )
    config = default_config()
    config.model.name = model
    config.model.dtype = "bfloat16"
    config.model.zero_init_scale = True
    if not variants:
        config.model.bn_group_size = 32  # the paper's images per GPU, on any number of devices

    config.data.name = "imagenet2012"
    config.data.validation = ""  # as in the paper, nothing is selected
    config.data.test = "validation"  # the test images have no public labels
    config.data.random_crop_area = (0.08, 1.0)
    config.data.image_size, config.data.eval_resize = 224, 256
    config.data.mean, config.data.std = IMAGENET_MEAN, IMAGENET_STD
    config.data.resident = False  # 180 GiB
    config.data.crop_padding = 0

    config.batch_size = 8192
    config.eval_batch_size = 8192
    config.duration = 90.0
    config.steps_per_dispatch = 10
    config.log_every = 50

    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay_exempt = ("norm",)
    config.schedule.name = "step"
    config.schedule.base_lr = 0.1
    config.schedule.reference_batch = 256
    config.schedule.warmup = 5.0
    config.schedule.boundaries = (30.0, 60.0, 80.0)
    config.schedule.scales = (1.0, 0.1, 0.01, 0.001)
    return config
