"""TrivialAugment, RandAugment and random erasing, on the device.

Each example draws from its own key. For a batch, all operations are computed and one is selected
per image: on an accelerator this takes less time than to copy an image to it.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from resnet_jax.data.augment import image_ops as ops
from resnet_jax.data.augment.mixing import interval_mask

PolicyName = Literal["", "trivial", "randaugment"]

LARGEST_MAGNITUDE = 10.0
_BINS = 31
_LAYERS = 2  # operations of RandAugment per image; each is skipped with probability 1/2

# Operation, its value at strength 0, its strengths, and whether the sign of the strength is random.
# Table 3 ("wide") of the paper, with the numbers of torchvision's code.
_linear = np.linspace
_TRIVIAL: Sequence[tuple[ops.Operation, float, np.ndarray, bool]] = (
    (ops.identity, 0.0, np.zeros(_BINS), False),
    (ops.shear_x, 0.0, _linear(0, 0.99, _BINS), True),
    (ops.shear_y, 0.0, _linear(0, 0.99, _BINS), True),
    (ops.translate_x, 0.0, np.floor(_linear(0, 32, _BINS)), True),
    (ops.translate_y, 0.0, np.floor(_linear(0, 32, _BINS)), True),
    (ops.rotate, 0.0, _linear(0, 135, _BINS), True),
    (ops.brightness, 1.0, _linear(0, 0.99, _BINS), True),
    (ops.color, 1.0, _linear(0, 0.99, _BINS), True),
    (ops.contrast, 1.0, _linear(0, 0.99, _BINS), True),
    (ops.sharpness, 1.0, _linear(0, 0.99, _BINS), True),
    (ops.posterize, 8.0, -np.round(np.arange(_BINS) / ((_BINS - 1) / 6)), False),
    (ops.solarize, 0.0, _linear(255, 0, _BINS), False),
    (ops.autocontrast, 0.0, np.zeros(_BINS), False),
    (ops.equalize, 0.0, np.zeros(_BINS), False),
)


def trivial_augment(images: UInt8[Array, "n h w 3"], keys: jax.Array) -> UInt8[Array, "n h w 3"]:
    """Apply one operation of a random strength to each image (Müller & Hutter 2021, 2103.10158).

    As torchvision's `TrivialAugmentWide`: 14 operations, 31 strengths, black outside of the image.

    Args:
        images: the images as decoded.
        keys: one random key per image.
    """
    operations = [operation for operation, *_ in _TRIVIAL]
    bases = jnp.array([base for _, base, _, _ in _TRIVIAL], jnp.float32)
    strengths = jnp.array([values for _, _, values, _ in _TRIVIAL], jnp.float32)
    signed = jnp.array([random_sign for *_, random_sign in _TRIVIAL])

    def augment_image(image: jax.Array, key: jax.Array) -> jax.Array:
        which_key, bin_key, sign_key = jax.random.split(key, 3)
        which = jax.random.randint(which_key, (), 0, len(operations))
        strength = strengths[which, jax.random.randint(bin_key, (), 0, _BINS)]
        negative = signed[which] & jax.random.bernoulli(sign_key)
        value = bases[which] + jnp.where(negative, -strength, strength)
        return jax.lax.switch(which, operations, image, value)

    return jax.vmap(augment_image)(images, keys)


_RANDAUGMENT: Sequence[ops.Operation] = (
    ops.autocontrast, ops.equalize, ops.invert, ops.rotate, ops.posterize, ops.solarize,
    ops.solarize_add, ops.color, ops.contrast, ops.brightness, ops.sharpness, ops.shear_x,
    ops.shear_y, ops.translate_x, ops.translate_y,
)  # fmt: skip


def randaugment_values(
    level: Float[Array, ""], sign: Float[Array, ""], height: int, width: int
) -> Float[Array, " 15"]:
    """Return the argument of each operation of `rand_augment`.

    These are timm's "increasing" values: the higher the level, the stronger the operation.

    Args:
        level: strength, 0 to 1.
        sign: 1 or -1.
        height, width: of the images.
    """
    unused = jnp.float32(0)
    enhancement = jnp.maximum(0.1, 1 + sign * 0.9 * level)
    return jnp.stack(
        [
            unused,
            unused,
            unused,
            sign * 30 * level,
            4 - jnp.floor(4 * level),
            256 - jnp.minimum(256, jnp.floor(256 * level)),
            jnp.minimum(128, jnp.floor(110 * level)),
            *[enhancement] * 4,
            sign * 0.3 * level,
            sign * 0.3 * level,
            sign * 0.45 * level * width,
            sign * 0.45 * level * height,
        ]
    )


def rand_augment(
    images: UInt8[Array, "n h w 3"], keys: jax.Array, *, magnitude: float, magnitude_std: float
) -> UInt8[Array, "n h w 3"]:
    """Apply two of 15 operations to each image (Cubuk et al. 2019, 1909.13719).

    As timm's "rand-mM-mstdD-inc1": each operation is skipped with probability 1/2, and its
    magnitude is normally distributed, clipped to 0…10. Unlike in timm, geometric operations use
    the nearest pixel, and black outside of the image.

    Args:
        images: the images as decoded.
        keys: one random key per image.
        magnitude, magnitude_std: M and D.
    """
    _, height, width, _ = images.shape

    def layer(image: jax.Array, key: jax.Array) -> jax.Array:
        which_key, level_key, sign_key, skip_key = jax.random.split(key, 4)
        which = jax.random.randint(which_key, (), 0, len(_RANDAUGMENT))
        level = magnitude + magnitude_std * jax.random.normal(level_key)
        level = jnp.clip(level, 0, LARGEST_MAGNITUDE) / LARGEST_MAGNITUDE
        sign = jnp.where(jax.random.bernoulli(sign_key), 1.0, -1.0)
        value = randaugment_values(level, sign, height, width)[which]
        changed = jax.lax.switch(which, list(_RANDAUGMENT), image, value)
        return jnp.where(jax.random.bernoulli(skip_key), image, changed)

    def augment_image(image: jax.Array, key: jax.Array) -> jax.Array:
        for layer_key in jax.random.split(key, _LAYERS):
            image = layer(image, layer_key)
        return image

    return jax.vmap(augment_image)(images, keys)


def apply_policy(
    images: UInt8[Array, "n h w 3"],
    keys: jax.Array,
    policy: PolicyName,
    *,
    magnitude: float,
    magnitude_std: float,
) -> UInt8[Array, "n h w 3"]:
    """Apply a policy by its name; "" returns the images unchanged."""
    if policy == "trivial":
        return trivial_augment(images, keys)
    if policy == "randaugment":
        return rand_augment(images, keys, magnitude=magnitude, magnitude_std=magnitude_std)
    return images


def erase(
    images: Float[Array, "n h w c"], keys: jax.Array, *, probability: float
) -> Float[Array, "n h w c"]:
    """Replace a random rectangle by zeros, the mean (Zhong et al. 2017, 1708.04896).

    As torchvision's `RandomErasing`: the rectangle covers 2 to 33 % of the area; the logarithm of
    its aspect ratio is uniform between those of 0.3 and 3.3; the first of ten attempts that fits.

    Args:
        images: normalised images.
        keys: one random key per image.
        probability: probability that an image is erased.
    """
    _, height, width, _ = images.shape

    def erase_image(image: jax.Array, key: jax.Array) -> jax.Array:
        erase_key, draw_key = jax.random.split(key)
        draws = jax.random.uniform(draw_key, (10, 4))
        area = height * width * (0.02 + draws[:, 0] * (0.33 - 0.02))
        low, high = jnp.log(0.3), jnp.log(3.3)
        ratio = jnp.exp(low + draws[:, 1] * (high - low))
        h = jnp.round(jnp.sqrt(area * ratio)).astype(jnp.int32)
        w = jnp.round(jnp.sqrt(area / ratio)).astype(jnp.int32)
        fits = (h < height) & (w < width)
        first = jnp.argmax(fits)
        h, w = h[first], w[first]
        top = (draws[first, 2] * (height - h + 1)).astype(jnp.int32)
        left = (draws[first, 3] * (width - w + 1)).astype(jnp.int32)
        rows, columns = interval_mask(top, top + h, height), interval_mask(left, left + w, width)
        inside = rows[:, None] & columns[None, :]
        erased = jax.random.bernoulli(erase_key, probability) & fits.any() & inside
        return jnp.where(erased[..., None], 0.0, image)

    return jax.vmap(erase_image)(images, keys)
