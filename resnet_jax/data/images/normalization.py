"""Normalisation of images: (images − mean) / std."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from resnet_jax.errors import ConfigError, did_you_mean

NORMALIZATIONS = ("channel", "pixel_mean")
_BLOCK = 4096  # images per block of the variance


def normalization_shapes(
    image_shape: tuple[int, int, int], kind: str
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays of `measure_normalization` for images of `image_shape`."""
    channels = image_shape[-1:]
    if kind == "channel":
        return {"mean": channels, "std": channels}
    return {"mean": image_shape, "std": ()}


def measure_normalization(
    images: UInt8[np.ndarray, "n h w c"], kind: str
) -> dict[str, Float[np.ndarray, "..."]]:
    """Compute the mean and the standard deviation of a training split.

    "channel" computes one mean and one standard deviation per channel. "pixel_mean" computes the
    mean image, which He et al. 2015 (1512.03385, section 4.2) subtract, and one standard deviation
    for all pixels; the paper doesn't divide by a standard deviation. With both, zero padding of
    normalised images is padding with the mean.

    Args:
        images: the training split.
        kind: "channel" or "pixel_mean".

    Returns:
        {"mean", "std"}, float32, in grey levels (0–255); shapes as in `normalization_shapes`. The
        standard deviation is at least 1.

    Raises:
        ConfigError: unknown `kind`.
    """
    if kind not in NORMALIZATIONS:
        hint = did_you_mean(kind, NORMALIZATIONS)
        raise ConfigError(
            f"data.normalize is {kind!r}; it can be {', '.join(NORMALIZATIONS)}.{hint}"
        )
    axes = (0, 1, 2) if kind == "channel" else (0,)
    mean = images.mean(axis=axes, dtype=np.float64)
    # In blocks: float64 takes eight times the memory of the images, and the split may be large.
    variance = np.zeros(images.shape[-1] if kind == "channel" else ())
    for start in range(0, len(images), _BLOCK):
        deviation = images[start : start + _BLOCK] - mean
        over = (0, 1, 2) if kind == "channel" else None
        variance += np.square(deviation).mean(axis=over) * len(deviation) / len(images)
    std = np.sqrt(variance)
    return {"mean": mean.astype(np.float32), "std": np.maximum(std, 1.0).astype(np.float32)}


def given_normalization(
    mean: Sequence[float], std: Sequence[float]
) -> dict[str, Float[np.ndarray, " c"]]:
    """Convert a mean and a standard deviation in 0…1 to grey levels; {} if both are empty.

    Returns:
        {"mean", "std"}, float32 [c], as `measure_normalization` with "channel".
    """
    values = {"mean": mean, "std": std}
    return {name: 255 * np.array(v, np.float32) for name, v in values.items() if len(v)}


def normalize(
    images: UInt8[Array, "n h w c"], normalization: Mapping[str, Array]
) -> Float[Array, "n h w c"]:
    """Return (images − mean) / std as float32; `normalization` is {"mean", "std"}."""
    return (images.astype(jnp.float32) - normalization["mean"]) / normalization["std"]
