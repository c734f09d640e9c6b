"""Residual networks in JAX and Flax, and a trainer for them.

    model = resnet_jax.create_model("resnet50", num_classes=1000)
    result = resnet_jax.fit(config, workdir)

Names are imported when they are first used: a program that only applies a model doesn't wait for
the trainer's libraries.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_jax.config.schema import default_config
    from resnet_jax.data.augment.config import register_augmentation
    from resnet_jax.errors import ResnetJaxError
    from resnet_jax.inference.network import TrainedNetwork
    from resnet_jax.inference.pretrained import PretrainedNetwork, pretrained
    from resnet_jax.inference.restore import restore_run
    from resnet_jax.models.branches import register_branch
    from resnet_jax.models.folding import fold_batch_norm
    from resnet_jax.models.nnx import to_nnx
    from resnet_jax.models.presets import (
        create_model,
        init_variables,
        list_models,
        register_preset,
    )
    from resnet_jax.models.resnet import ResNet
    from resnet_jax.models.summary import summarize
    from resnet_jax.models.surgery import adapt_input_channels, stack_units, unstack_units
    from resnet_jax.train.callbacks import Callback, RunView
    from resnet_jax.train.fit import FitResult, fit
    from resnet_jax.train.losses import register_loss
    from resnet_jax.train.metrics import register_metric
    from resnet_jax.train.optimizer import register_optimizer
    from resnet_jax.weights.load import load_weights, read_model
    from resnet_jax.weights.save import save_weights
    from resnet_jax.weights.zoo import PublishedWeights, list_weights

_HOME = {
    "ResnetJaxError": "errors",
    "create_model": "models.presets",
    "init_variables": "models.presets",
    "list_models": "models.presets",
    "ResNet": "models.resnet",
    "fold_batch_norm": "models.folding",
    "to_nnx": "models.nnx",
    "adapt_input_channels": "models.surgery",
    "stack_units": "models.surgery",
    "unstack_units": "models.surgery",
    "load_weights": "weights.load",
    "read_model": "weights.load",
    "save_weights": "weights.save",
    "PublishedWeights": "weights.zoo",
    "list_weights": "weights.zoo",
    "summarize": "models.summary",
    "default_config": "config.schema",
    "Callback": "train.callbacks",
    "RunView": "train.callbacks",
    "FitResult": "train.fit",
    "fit": "train.fit",
    "TrainedNetwork": "inference.network",
    "PretrainedNetwork": "inference.pretrained",
    "pretrained": "inference.pretrained",
    "restore_run": "inference.restore",
    "register_augmentation": "data.augment.config",
    "register_branch": "models.branches",
    "register_loss": "train.losses",
    "register_metric": "train.metrics",
    "register_optimizer": "train.optimizer",
    "register_preset": "models.presets",
}

__version__ = "0.1.0"  # also in pyproject.toml

__all__ = [  # noqa: RUF022 - from the model to the run
    "create_model",
    "init_variables",
    "list_models",
    "summarize",
    "ResNet",
    "fold_batch_norm",
    "to_nnx",
    "adapt_input_channels",
    "stack_units",
    "unstack_units",
    "load_weights",
    "read_model",
    "save_weights",
    "list_weights",
    "PublishedWeights",
    "pretrained",
    "PretrainedNetwork",
    "default_config",
    "fit",
    "FitResult",
    "Callback",
    "RunView",
    "restore_run",
    "TrainedNetwork",
    "register_branch",
    "register_preset",
    "register_augmentation",
    "register_loss",
    "register_optimizer",
    "register_metric",
    "ResnetJaxError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'resnet_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"resnet_jax.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
