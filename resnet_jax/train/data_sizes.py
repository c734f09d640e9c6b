"""Sizes of a config's images and splits, as far as they are known without reading data."""

import ml_collections

from resnet_jax.data.dataset_info import KNOWN_SETS, KnownSet, find_known
from resnet_jax.data.images.preprocessing import ScaleAndCrop
from resnet_jax.data.splits import parse_split
from resnet_jax.errors import ConfigError, did_you_mean


def duration_unit(config: ml_collections.ConfigDict, train_examples: int) -> int:
    """Return the number of examples in one `config.duration_unit`."""
    return train_examples if config.duration_unit == "epochs" else 1


def evaluation_crop(config: ml_collections.ConfigDict) -> ScaleAndCrop | None:
    """Return how images of validation and test splits are scaled and cropped; None for not at all.

    Training images are scaled and cropped in the same way, unless they are decoded as needed.

    Raises:
        ConfigError: `data.eval_resize` is smaller than `data.eval_size`.
    """
    data = config.data
    size = data.eval_size or data.image_size
    if not size:
        return None
    return ScaleAndCrop.square(
        size, resize=data.eval_resize or size, interpolation=data.interpolation
    )


def known_length(config: ml_collections.ConfigDict, spec: str) -> int:
    """Return the number of examples of a split, without reading the data.

    Raises:
        ConfigError: there is no such split, or its size isn't known.
    """
    spans = parse_split(spec, known_set(config).lengths, config.data.name)
    return sum(span.stop - span.start for span in spans)


def known_set(config: ml_collections.ConfigDict) -> KnownSet:
    """Return the sizes of the config's data set.

    Raises:
        ConfigError: they aren't known without reading the data.
    """
    known = find_known(config.data.name, image_size=config.data.image_size)
    if known is None:
        raise ConfigError(
            f"data.name is {config.data.name!r}, whose sizes aren't known without reading it; known"
            f" are {', '.join(KNOWN_SETS)}.{did_you_mean(config.data.name, KNOWN_SETS)}"
        )
    return known
