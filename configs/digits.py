"""ResNet-20 on the handwritten digits that come with scikit-learn: 1,797 real 8×8 images.

COMMAND: python train.py --config=configs/digits.py --workdir=runs/digits
EXPECTED: 98.3 % or more of the 360 test images (median of seeds 0, 1, 2), within a minute on two
CPU cores. benchmarks/results/digits/ has the runs.
"""

from ml_collections import ConfigDict

from resnet_jax.config.schema import default_config
from resnet_jax.models.presets import create_model


def get_config(model: str = "resnet20") -> ConfigDict:
    """`digits.py:NAME` trains another CIFAR-style model."""
    config = default_config()
    config.model.name = model

    config.data.name = "digits"
    config.data.train = "train[:1293]"
    config.data.validation = "train[1293:]"  # 144 images, to choose the best checkpoint
    config.data.crop_padding = 1  # the images are 8 pixels wide
    config.data.flip = False  # a mirrored digit is another sign

    config.batch_size = 64
    config.eval_batch_size = 360
    config.duration = 20.0  # epochs

    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "cosine"
    config.schedule.warmup = 2.0
    config.schedule.base_lr = 0.1
    config.schedule.reference_batch = 64

    # In the first epochs, of 20 steps each, the weights change faster than running averages of
    # their statistics follow: scored by those, a network of the second epoch is worse than chance.
    if create_model(model).normalization().kind == "batch":
        config.precise_bn = 4
    return config
