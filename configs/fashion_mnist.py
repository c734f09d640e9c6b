"""ResNet-8 on Fashion-MNIST (Xiao et al. 2017, 1708.07747): 70,000 grey images of clothes, 28×28.

The images are those of Debian's package dataset-fashion-mnist (apt install dataset-fashion-mnist),
or with --config.data.dir=FOLDER those of a folder of IDX files.

COMMAND: python train.py --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist
EXPECTED: test error in %, mean ± standard deviation of three seeds, after two epochs: 13.07 ± 0.41
(24 minutes on two CPU cores beside much other work). benchmarks/results/fashion_mnist/ has the run.
"""

from ml_collections import ConfigDict

from resnet_jax.config.schema import default_config


def get_config() -> ConfigDict:
    """Two epochs of one-cycle training, three seeds in one program."""
    config = default_config()
    config.model.name = "resnet20"
    config.model.stage_sizes = (1, 1, 1)  # 6 n + 2 layers with n = 1
    config.seeds = (0, 1, 2)

    config.data.name = "fashion_mnist"
    config.data.train = "train[:55000]"
    config.data.validation = "train[55000:]"
    config.data.crop_padding = 2
    config.data.flip = True  # clothes are worn both ways

    config.batch_size = 128
    config.duration = 2.0
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "cosine"
    config.schedule.base_lr = 0.1
    config.schedule.warmup = 0.5
    config.log_every = 10
    config.steps_per_dispatch = 5
    return config
