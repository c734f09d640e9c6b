"""Augmentation of a training batch on the device, and its settings.

Each example draws from its own random key, a function of (seed, epoch, example id). Its
augmentation doesn't depend on the batch, the device or the process.
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping

import jax
from jaxtyping import Array, Float, Int, UInt8

from resnet_jax.data.augment.crop_flip import crop_and_flip
from resnet_jax.data.augment.mixing import mix
from resnet_jax.data.augment.policies import PolicyName, apply_policy, erase
from resnet_jax.data.images.normalization import normalize
from resnet_jax.utils.registry import Registry


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Settings of `augment_batch`; the defaults only normalise.

    Attributes:
        crop_padding: pixels of padding before the random crop; 0 disables the crop.
        flip: flip half of the images left to right.
        policy: name of the policy of random operations; "" disables it. See `apply_policy`.
        magnitude, magnitude_std: mean and standard deviation of RandAugment's magnitude, 0 to 10.
        augmentations: names in `AUGMENTATIONS`, in the order in which they are applied.
        random_erasing: probability that a rectangle of an image is erased. See `erase`.
        mixup, cutmix: α of the Beta distribution of each; 0 disables it. See `mix`.
    """

    crop_padding: int = 0
    flip: bool = False
    policy: PolicyName = ""
    magnitude: float = 0.0
    magnitude_std: float = 0.0
    augmentations: tuple[str, ...] = ()
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0


Augmentation = Callable[[UInt8[Array, "h w c"], jax.Array], UInt8[Array, "h w c"]]
"""From an image as decoded and a random key of this image alone, to an image of that shape."""

AUGMENTATIONS: Registry[Augmentation] = Registry("augmentation", {})
"""Augmentations of users by their names in `config.data.augmentations`."""


def register_augmentation(name: str, augmentation: Augmentation) -> None:
    """Add an augmentation of training images, for `config.data.augmentations`.

    Args:
        name: an identifier.
        augmentation: called with an image, uint8 [h, w, c], and a random key; returns an image of
            this shape, in grey levels 0 to 255. Runs under `jit` and `vmap`. The key is a function
            of (seed, epoch, example), so that the result doesn't depend on the batch or device.

    Raises:
        ConfigError: the name isn't an identifier, or another module has registered it.
    """
    AUGMENTATIONS.register(name, augmentation, module=augmentation.__module__)


def example_keys(key: jax.Array, ids: Int[Array, " n"], epochs: Int[Array, " n"]) -> jax.Array:
    """Return one random key per example, [n], from the run's key, its epoch and its id."""
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    return jax.vmap(jax.random.fold_in)(fold(key, epochs), ids)


def augment_batch(
    images: UInt8[Array, "n h w c"],
    targets: Float[Array, "n k"],
    keys: jax.Array,
    config: AugmentConfig,
    *,
    normalization: Mapping[str, Array],
) -> tuple[Float[Array, "n h w c"], Float[Array, "n k"]]:
    """Normalise and augment a batch.

    The order is: policy and registered augmentations (on uint8), normalisation, crop and flip,
    random erasing, mixing. Crop and flip split the keys, and each other augmentation folds a number
    into them: enabling one doesn't change the others.

    Args:
        images: the images as decoded.
        targets: class probabilities.
        keys: one random key per example, [n]. See `example_keys`.
        config: the settings.
        normalization: {"mean", "std"} in grey levels. See `normalize`.

    Returns:
        The network's inputs, float32, and the targets, mixed as the images are.
    """

    def subkeys(number: int) -> jax.Array:
        return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)

    if config.policy:
        images = apply_policy(
            images,
            subkeys(1),
            config.policy,
            magnitude=config.magnitude,
            magnitude_std=config.magnitude_std,
        )
    for name in config.augmentations:
        images = jax.vmap(AUGMENTATIONS[name])(images, subkeys(zlib.crc32(name.encode())))
    inputs = normalize(images, normalization)
    inputs = crop_and_flip(inputs, keys, pad=config.crop_padding, flip=config.flip)
    if config.random_erasing:
        inputs = erase(inputs, subkeys(2), probability=config.random_erasing)
    if config.mixup or config.cutmix:
        inputs, targets = mix(inputs, targets, subkeys(3), mixup=config.mixup, cutmix=config.cutmix)
    return inputs, targets
