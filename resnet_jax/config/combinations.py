"""Checks of config fields that depend on each other."""

import itertools

from ml_collections import ConfigDict

from resnet_jax.errors import ConfigError


def check_combinations(config: ConfigDict) -> None:
    """Check a config whose fields have been checked one by one.

    Raises:
        ConfigError: naming the fields that don't go together.
    """
    _check_normalization(config)
    if config.model.param_dtype not in (None, "float32"):
        raise ConfigError(
            f"model.param_dtype is {config.model.param_dtype!r}, and runs have parameters in"
            " float32: smaller types would lose small updates. model.dtype='bfloat16' computes in"
            " bfloat16."
        )
    if config.data.random_crop_area:
        _check_streaming(config)
    else:
        _check_in_memory(config)
    _check_training(config)
    if config.mesh.shards:
        _check_shards(config)


def _check_normalization(config: ConfigDict) -> None:
    mean, std = config.data.mean, config.data.std
    if len(mean) != len(std):
        raise ConfigError(f"data.mean is {mean} and data.std {std}; both have a value per channel.")
    if mean and config.data.normalize != "channel":
        raise ConfigError(
            f"data.normalize is {config.data.normalize!r}, which is measured; data.mean and"
            " data.std are for 'channel'."
        )
    if not all(0 <= value <= 1 for value in mean) or not all(0 < value <= 1 for value in std):
        raise ConfigError(
            f"data.mean is {mean} and data.std {std}; they are of values in 0…1, and no deviation"
            " is 0."
        )


def _check_in_memory(config: ConfigDict) -> None:
    data = config.data
    for name in ("eval_size", "eval_resize", "early_sizes", "size_boundaries"):
        if data[name]:
            raise ConfigError(f"data.{name} is {data[name]}; it goes with data.random_crop_area.")
    if data.interpolation != "bilinear" and data.image_size is None:
        raise ConfigError(
            f"data.interpolation is {data.interpolation!r}, and nothing is scaled; it goes with"
            " data.image_size."
        )


def _check_streaming(config: ConfigDict) -> None:
    data = config.data
    if data.image_size is None or not data.mean:
        raise ConfigError(
            "data.random_crop_area needs data.image_size, and data.mean and data.std: images that"
            " are decoded as they are needed aren't measured."
        )
    size = data.eval_size or data.image_size
    if data.eval_resize is not None and data.eval_resize < size:
        raise ConfigError(
            f"data.eval_resize is {data.eval_resize}, of which the {size} pixels of data.eval_size"
            " can't be cut out."
        )
    sizes, edges = data.early_sizes, data.size_boundaries
    rising = all(a < b for a, b in itertools.pairwise((0, *edges)))
    pixels = all(isinstance(size, int) and size > 0 for size in sizes)
    if len(sizes) != len(edges) or not rising or not pixels:
        raise ConfigError(
            f"data.early_sizes is {sizes} and data.size_boundaries {edges}; there must be as many"
            " sizes in pixels as points where they end, and the points must rise."
        )
    if data.corrupt != "stop":
        raise ConfigError(
            "data.corrupt is 'skip', which would change what a batch holds;"
            " `resnet-jax prepare` leaves out what is damaged."
        )
    if config.diagnostics.every:
        raise ConfigError(
            "diagnostics.every is set, and the training images are decoded as needed; diagnostics"
            " are of data sets that are held in memory. Set it to 0."
        )


def _check_training(config: ConfigDict) -> None:
    if config.optimizer.trainable == "head" and config.optimizer.layer_decay < 1:
        raise ConfigError(
            "optimizer.trainable is 'head', and optimizer.layer_decay lowers the rates of all else;"
            " set one of them."
        )
    distill = config.distill
    if bool(distill.teacher) != bool(distill.model):
        raise ConfigError(
            f"distill.teacher is {distill.teacher!r} and distill.model {distill.model!r}; a weight"
            " file and the name of its network go together."
        )
    if config.bce_threshold and config.loss == "softmax":
        raise ConfigError(
            f"bce_threshold is {config.bce_threshold}, and loss is 'softmax'; the threshold is for"
            " 'bce' and 'bce_sum'."
        )


def _check_shards(config: ConfigDict) -> None:
    reasons = {
        "seeds": (config.seeds, "train each seed in a run of its own"),
        "accumulate": (config.accumulate > 1, "the shards of a device are micro-batches already"),
        "diagnostics.every": (config.diagnostics.every, "its sums aren't over shards"),
    }
    for name, (is_set, reason) in reasons.items():
        if is_set:
            raise ConfigError(
                f"mesh.shards is {config.mesh.shards}, which doesn't go with {name}: {reason}."
            )
