"""Random crops of padded images and random flips."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def crop_and_flip(
    images: Float[Array, "n h w c"], keys: jax.Array, *, pad: int, flip: bool
) -> Float[Array, "n h w c"]:
    """Pad with zeros, crop a random window of the original size, flip half of the images.

    The CIFAR augmentation of He et al. 2015 (1512.03385, section 4.2) has `pad=4`.

    Args:
        images: normalised images, in which zero is the mean.
        keys: one random key per image, [n].
        pad: pixels of padding on each side; 0 disables the crop.
        flip: flip left to right with probability 1/2.
    """

    def augment_image(image: jax.Array, key: jax.Array) -> jax.Array:
        crop_key, flip_key = jax.random.split(key)
        if pad:
            padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
            y, x = jax.random.randint(crop_key, (2,), 0, 2 * pad + 1)
            image = jax.lax.dynamic_slice(padded, (y, x, 0), image.shape)
        if flip:
            image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
        return image

    return jax.vmap(augment_image)(images, keys) if pad or flip else images
