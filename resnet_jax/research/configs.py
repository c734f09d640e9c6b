"""Configs of the runs that reproductions train: on digits (small) and on CIFAR-10 (the papers')."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from resnet_jax.config.schema import default_config, set_field


def digits(model: str, fields: Mapping[str, Any] | None = None) -> ConfigDict:
    """160 steps of 32 on scikit-learn's 8×8 digits: seconds on two CPU cores.

    The networks are the CIFAR ones at half their width, and the learning rate is constant.

    Args:
        model: name of a preset.
        fields: overrides by dotted name, such as {"model.shortcut": "none"}.
    """
    config = default_config()
    config.model.name = model
    config.model.width = config.model.stem_width = 8
    config.data.crop_padding, config.data.flip = 0, False
    config.batch_size = 32
    config.duration_unit, config.duration = "examples", 160 * 32.0
    config.eval_every = config.checkpoint_every = config.duration
    config.eval_batch_size = 360
    config.keep_checkpoints = 1
    config.log_every = config.steps_per_dispatch = 10
    config.schedule.name = "constant"
    return _with(config, fields or {})


def cifar10(
    model: str, fields: Mapping[str, Any] | None = None, *, share: float = 1.0
) -> ConfigDict:
    """The recipe of He et al. 2015 (1512.03385), section 4.2, on all 50,000 training images.

    64,000 steps of 128, the learning rate divided by 10 at 32,000 and 48,000 of them.

    Args:
        model: name of a preset.
        fields: overrides by dotted name.
        share: scales the number of steps, and all other lengths with it.
    """
    config = default_config()
    config.model.name = model
    config.model.bn_group_size = 64  # the paper split each batch over two GPUs
    config.data.name = "cifar10"
    config.data.normalize = "pixel_mean"
    config.batch_size = 128
    config.duration_unit, config.duration = "examples", share * 64_000 * 128
    config.eval_every = config.checkpoint_every = config.duration / 16
    config.keep_checkpoints = 1
    config.log_every = config.steps_per_dispatch = 100
    config.schedule.name = "step"
    config.schedule.boundaries = (share * 32_000 * 128, share * 48_000 * 128)
    config.schedule.scales = (1.0, 0.1, 0.01)
    return _with(config, fields or {})


def plain_and_residual_digits() -> dict[str, ConfigDict]:
    """Plain and residual networks of 20 and 56 layers on digits, by name."""
    return {
        f"{kind}{depth}": digits(f"resnet{depth}", fields)
        for depth in (20, 56)
        for kind, fields in (("plain", {"model.shortcut": "none"}), ("resnet", None))
    }


def plain_and_residual_cifar10() -> dict[str, ConfigDict]:
    """The networks of He et al. 2015, table 6, on CIFAR-10, by name, in order of their cost."""
    runs = {f"resnet{depth}": cifar10(f"resnet{depth}") for depth in (20, 32, 44, 56)}
    runs |= {
        f"plain{depth}": cifar10(f"resnet{depth}", {"model.shortcut": "none"}) for depth in (20, 56)
    }
    return runs | {f"resnet{depth}": cifar10(f"resnet{depth}") for depth in (110, 1202)}


def _with(config: ConfigDict, fields: Mapping[str, Any]) -> ConfigDict:
    # Some variants of the papers diverge; a seed that does must not end the others.
    config.nonfinite.policy, config.nonfinite.limit = "skip", 10**9
    for name, value in fields.items():
        if value is None:  # the preset's value
            section, _, field = name.rpartition(".")
            config[section][field] = None
        else:
            set_field(config, name, value)
    return config
