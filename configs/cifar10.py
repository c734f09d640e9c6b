"""CIFAR-10 by the recipe of He et al. 2015 (1512.03385), section 4.2.

COMMAND: python train.py --config=configs/cifar10.py:resnet20 --workdir=runs/cifar10
EXPECTED: a test error near the paper's 8.75 % for ResNet-20 (7.51, 7.17 and 6.97 % for 32,
44 and 56 layers; 6.43 % for 110, the best of five runs) after 64,000 steps.
configs/cifar10_table6.py has the same recipe with records at every 50 steps, and 8.64 % for
ResNet-20 (seed 0). Deeper networks need an accelerator.

COMMAND: python train.py --config=configs/cifar10.py:resnet20,cpu --workdir=runs/cifar10-cpu
EXPECTED: 89.2 % of the 10,000 test images (seed 0) in 33 minutes on two CPU cores with oneDNN and
AVX-512.
benchmarks/results/cifar10_resnet20_cpu/ has the run.

COMMAND: resnet-jax sweep --config=configs/cifar10.py:resnet20,cpu --config.duration=3 \
    --config.schedule.warmup=0.5 --config.data.test= --workdir=runs/cifar10-trials
EXPECTED: the trials that decided the peak rate. After three epochs 76.6 % of the validation images
at 0.2 and 74.4 % at 0.1; at 0.1, 74.9 % with label smoothing, 73.7 % for the moving average, and
47.7 % in batches of 512 at 1.6 (one seed; the sweep as it was at the commit of the scores).
benchmarks/results/cifar10_trials/ has the scores.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from resnet_jax.config import recipes
from resnet_jax.config.schema import default_config
from resnet_jax.errors import ConfigError
from resnet_jax.models.presets import create_model


def get_config(arg: str = "resnet20") -> ConfigDict:
    """`cifar10.py:MODEL` is the paper's schedule, `cifar10.py:MODEL,cpu` a short one.

    `cifar10.py:MODEL,RECIPE` is another one, of resnet_jax/config/published_recipes.py.
    """
    model, *variants = arg.split(",")
    if len(variants) > 1:
        raise ConfigError(f"cifar10.py takes {model} and one recipe, not {', '.join(variants)}.")
    if variants and variants != ["cpu"]:
        return recipes.make(variants[0], model=model, data="cifar10")
    config = default_config()
    config.model.name = model

    config.data.name = "cifar10"
    config.data.train = "train[:45000]"  # the paper's 45k/5k split
    config.data.validation = "train[45000:]"
    config.data.normalize = "pixel_mean"
    config.data.crop_padding = 4
    config.data.flip = True
    config.optimizer.weight_decay = 1e-4

    if variants:
        return _cpu(config)
    return _paper(config)


def _paper(config: ConfigDict) -> ConfigDict:
    """64,000 steps of 128, the learning rate divided by 10 at 32,000 and 48,000."""
    config.batch_size = 128
    if create_model(config.model.name).normalization().kind == "batch":
        config.model.bn_group_size = 64  # the paper split each batch over two GPUs
    config.duration_unit = "examples"
    config.duration = 64_000 * 128.0
    config.eval_every = config.checkpoint_every = 1_000 * 128.0
    config.log_every = 100
    config.steps_per_dispatch = 100
    config.schedule.name = "step"
    config.schedule.base_lr = 0.1
    config.schedule.boundaries = (32_000 * 128.0, 48_000 * 128.0)
    config.schedule.scales = (1.0, 0.1, 0.01)
    if config.model.name == "resnet110":  # "we use 0.01 to warm up the training", about 400 steps
        config.schedule.boundaries = (400 * 128.0, *config.schedule.boundaries)
        config.schedule.scales = (0.1, *config.schedule.scales)
    return config


def _cpu(config: ConfigDict) -> ConfigDict:
    """Twenty epochs of one-cycle training."""
    config.batch_size = 128
    config.duration = 20.0
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "cosine"
    config.schedule.base_lr = 0.2
    config.schedule.warmup = 1.0
    config.log_every = 10
    config.steps_per_dispatch = 5
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """What the short schedule might do differently, to be tried with fewer epochs."""
    yield {"name": "as_it_is"}
    yield {"name": "rate_0.1", "schedule.base_lr": 0.1}
    yield {"name": "label_smoothing", "label_smoothing": 0.1}
    yield {"name": "average", "ema_decay": 0.99, "ema_warmup": True}
    yield {"name": "batch_512", "batch_size": 512}  # with four times the peak rate
