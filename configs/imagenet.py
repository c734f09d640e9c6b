"""ImageNet, by the recipe of Goyal et al. 2017 (1706.02677) unless another one is named.

90 epochs in batches of 8,192: He et al.'s recipe (1512.03385) with a learning rate in proportion
to the batch, a gradual warm-up, no weight decay of normalisation's parameters, and blocks that
begin as the identity.

COMMAND: python train.py --config=configs/imagenet.py:resnet50 --workdir=runs/imagenet
EXPECTED: 23.74 % top-1 error of the 50,000 validation images (the paper's table 1, with a batch of
8,192, median of the last 5 epochs over 5 runs); not yet run here, it needs accelerators.

COMMAND: python train.py --config=configs/imagenet.py:resnet50,rsb_a2 --workdir=runs/rsb
EXPECTED: what resnet_jax/config/published_recipes.py says of it, where all recipes are.

COMMAND: resnet-jax compile --config=configs/imagenet.py:resnet50 --topology=v5e:16x16
EXPECTED: docs/scaling.md has the figures.
"""

from ml_collections import ConfigDict

from resnet_jax.config import recipes
from resnet_jax.errors import ConfigError


def get_config(arg: str = "resnet50") -> ConfigDict:
    """`imagenet.py:MODEL[,RECIPE][,whole]`; "whole" normalises over the whole batch."""
    model, *more = arg.split(",")
    whole = "whole" in more
    names = [name for name in more if name != "whole"] or ["goyal_2017"]
    if len(names) > 1:
        raise ConfigError(f"imagenet.py takes {model} and one recipe, not {', '.join(names)}.")
    config = recipes.make(names[0], model=model)
    if whole:
        config.model.bn_group_size = None
    return config
