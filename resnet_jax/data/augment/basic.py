"""Normalisation and augmentation of image batches, jitted on the device.

Each example draws from its own key, a function of (seed, epoch, example id), so that its
augmentation doesn't depend on the batch, the device or the process it lands in.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from resnet_jax.errors import ConfigError, did_you_mean

NORMALIZATIONS = ("channel", "pixel_mean")
_BLOCK = 4096  # images


def normalization_shapes(
    image_shape: tuple[int, int, int], kind: str
) -> dict[str, tuple[int, ...]]:
    """Shapes of what `measure_normalization` returns for images of `image_shape`."""
    channels = image_shape[-1:]
    if kind == "channel":
        return {"mean": channels, "std": channels}
    return {"mean": image_shape, "std": ()}


def measure_normalization(
    images: UInt8[np.ndarray, "n h w c"], kind: str
) -> dict[str, Float[np.ndarray, "..."]]:
    """Mean and standard deviation of a training split, float32, in units of grey levels (0–255).

    "channel" gives one mean and deviation per channel. "pixel_mean" gives the mean image, which
    He et al. 2015 (section 4.2) subtract, and divides by one deviation for all pixels, which they
    don't; after it, as after theirs, zero padding is padding with the mean.

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
    # Block by block: the data set may be large, and float64 takes eight times its memory.
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
    """What `measure_normalization` returns for "channel", from values in 0…1; {} from none."""
    values = {"mean": mean, "std": std}
    return {name: 255 * np.array(v, np.float32) for name, v in values.items() if len(v)}


def normalize(
    images: UInt8[Array, "n h w c"], normalization: dict[str, Array]
) -> Float[Array, "n h w c"]:
    """Return (images − mean) / std as float32."""
    return (images.astype(jnp.float32) - normalization["mean"]) / normalization["std"]


def example_keys(key: jax.Array, ids: Int[Array, " n"], epochs: Int[Array, " n"]) -> jax.Array:
    """One random key per example, [n], from the run's key, its epoch and its id."""
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    return jax.vmap(jax.random.fold_in)(fold(key, epochs), ids)


def crop_and_flip(
    images: Float[Array, "n h w c"], keys: jax.Array, *, pad: int, flip: bool
) -> Float[Array, "n h w c"]:
    """Pad with zeros, cut out a random window of the old size, mirror half of the images.

    The CIFAR augmentation of He et al. 2015 (section 4.2), with `pad=4`.

    Args:
        images: normalised images, in which zero is the mean.
        keys: one random key per image.
        pad: pixels added on each side; 0 leaves the images where they are.
        flip: mirror left and right with probability 1/2.
    """

    def one(image: jax.Array, key: jax.Array) -> jax.Array:
        crop_key, flip_key = jax.random.split(key)
        if pad:
            padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
            y, x = jax.random.randint(crop_key, (2,), 0, 2 * pad + 1)
            image = jax.lax.dynamic_slice(padded, (y, x, 0), image.shape)
        if flip:
            image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
        return image

    return jax.vmap(one)(images, keys) if pad or flip else images
