"""Weights of another data set, fine-tuned on your own images: a folder of CLASS/name.jpg.

COMMAND: python train.py --config=configs/finetune.py:resnet20 --workdir=runs/mine \
    --config.data.dir=FOLDER --config.init_from=WEIGHTS.safetensors
EXPECTED: more than from scratch. A ResNet-20 of CIFAR-10, fine-tuned for 100 steps on 100
photographs of five flowers, classifies 53 … 55 % of held-out photographs correctly, and 42 … 49 %
from scratch (seeds 0, 1, 2);
benchmarks/finetune.py compares them, benchmarks/results/finetune_flowers.json has the numbers.
"""

from ml_collections import ConfigDict

from resnet_jax.config.schema import default_config


def get_config(model: str = "resnet20") -> ConfigDict:
    """`finetune.py:NAME` takes another network: that of the weights."""
    config = default_config()
    config.model.name = model
    config.new_head = True  # of the folder's classes

    config.data.name = "folder"
    config.data.image_size = 32  # pixels; photographs are scaled and cropped to that
    config.data.train = "train[:80%]"  # for FOLDER/SPLIT/CLASS/name.jpg: the names of the splits
    config.data.validation = "train[80%:90%]"
    config.data.test = "train[90%:]"
    config.data.crop_padding = 4
    config.data.flip = True

    config.batch_size = 32
    config.duration = 20.0  # epochs
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "cosine"
    config.schedule.warmup = 1.0
    config.schedule.base_lr = 0.05
    config.schedule.reference_batch = 32
    return config
