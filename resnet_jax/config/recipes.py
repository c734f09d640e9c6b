"""Published training recipes: each sets fields of a config for ImageNet, for a ResNet-50.

    config = recipes.make("rsb_a2", model="resnet50")
    config = recipes.make("rsb_a2", model="resnet56", data="cifar10")

The batch size of a recipe is global: devices share the batch, and `accumulate` splits it. On
CIFAR-10 a recipe keeps its epochs and its regularisation, but has batches of 128, crops padded
images, and lowers the learning rate: in proportion to the batch for SGD and LARS (Goyal et al.
2017), to its square root for LAMB (You et al. 2019, 1904.00962). Nothing is published for that.

Fields of `model` that a network doesn't have, such as the `zero_init_scale` of a VGG, are left out.
"""

import math
from typing import Any

from ml_collections import ConfigDict

from resnet_jax.config.published_recipes import RECIPES, Fields, peak
from resnet_jax.config.schema import default_config, model_overrides
from resnet_jax.data.dataset_info import IMAGENET_MEAN, IMAGENET_STD
from resnet_jax.errors import ConfigError, did_you_mean
from resnet_jax.models.presets import create_model

# What most recipes have in common.
_IMAGENET: Fields = {
    "model": {"dtype": "bfloat16"},
    "data": {
        "name": "imagenet2012",
        "validation": "",
        "test": "validation",  # the test images have no public labels
        "random_crop_area": (0.08, 1.0),
        "image_size": 224,
        "eval_resize": 256,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "resident": False,
        "crop_padding": 0,
    },
    "eval_batch_size": 2048,
    "log_every": 50,
}

# Fields that replace those of `_IMAGENET` on CIFAR-10.
_CIFAR: Fields = {
    "model": {"dtype": "float32"},
    "data": {
        "name": "cifar10",
        "train": "train[:45000]",
        "validation": "train[45000:]",
        "test": "test",
        "resident": True,
        **dict.fromkeys(("random_crop_area", "early_sizes", "size_boundaries"), ()),
        **dict.fromkeys(("image_size", "eval_size", "eval_resize")),
        "interpolation": "bilinear",
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
        "crop_padding": 4,
    },
    "eval_batch_size": 500,
    "steps_per_dispatch": 50,
}


def make(recipe: str, *, model: str = "resnet50", data: str = "imagenet2012") -> ConfigDict:
    """Return the config of a recipe of `RECIPES`, for a preset and "imagenet2012" or "cifar10".

    Raises:
        ConfigError: unknown recipe, model or data.
    """
    if recipe not in RECIPES:
        hint = did_you_mean(recipe, RECIPES)
        raise ConfigError(f"There is no recipe {recipe!r}; there are {', '.join(RECIPES)}.{hint}")
    if data not in ("imagenet2012", "cifar10"):
        raise ConfigError(f"Recipes are for imagenet2012 and cifar10, not for {data!r}.")
    create_model(model)  # raises for an unknown name
    config = default_config()
    config.model.name = model
    for fields in (_IMAGENET, *RECIPES[recipe].parts):
        config.update(fields)
    if data == "cifar10":
        config.update(_scaled_batch(config))
        config.update(_CIFAR)
    for name in _unaccepted_fields(model, model_overrides(config)):
        config.model[name] = None
    return config


def _unaccepted_fields(model: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that the model doesn't accept, whichever of the others are set."""
    taken: dict[str, Any] = {}
    while True:
        rest = {name: value for name, value in fields.items() if name not in taken}
        more = {name: value for name, value in rest.items() if _takes(model, taken, {name: value})}
        if not more:
            return rest
        taken |= more


def _takes(model: str, taken: dict[str, Any], more: dict[str, Any]) -> bool:
    try:
        create_model(model, **taken, **more)
    except ConfigError:
        return False
    return True


def _scaled_batch(config: ConfigDict) -> Fields:
    """The batch size of CIFAR-10 and the learning rate for it."""
    schedule, batch = config.schedule, 128
    rate = schedule.base_lr * config.batch_size / schedule.reference_batch
    share = batch / config.batch_size
    if config.optimizer.name == "lamb":
        share = math.sqrt(share)
    return peak(rate * share, batch=batch, warmup=schedule.warmup)
