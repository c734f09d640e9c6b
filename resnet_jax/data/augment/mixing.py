"""Mixup and CutMix: examples that combine the images and labels of two examples.

Each example is mixed with its neighbour in the batch: 0 with 1, 2 with 3, …. Batches are random
permutations already, and neighbours are on one device.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def mix(
    images: Float[Array, "n h w c"],
    targets: Float[Array, "n k"],
    keys: jax.Array,
    *,
    mixup: float,
    cutmix: float,
) -> tuple[Float[Array, "n h w c"], Float[Array, "n k"]]:
    """Mix each example with its neighbour; in an odd batch, the last example isn't mixed.

    Mixup computes λ a + (1 − λ) b for an example a and its neighbour b (Zhang et al. 2017,
    1710.09412). CutMix replaces a box that covers a share 1 − λ of a by the same box of b (Yun et
    al. 2019, 1905.04899); the box is clipped at the edges, and λ becomes the share that remains of
    a. λ ~ Beta(α, α). With both, each example uses one of them, with probability 1/2.

    Args:
        images: normalised images.
        targets: class probabilities.
        keys: one random key per example.
        mixup, cutmix: α of each; 0 disables it.

    Returns:
        The mixed images and targets.
    """
    if not (mixup or cutmix) or len(images) < 2:
        return images, targets
    _, height, width, _ = images.shape

    def draw(key: jax.Array) -> tuple[Array, Array]:
        """Return the example's own share: at each pixel, [h, w], and of its label."""
        choice_key, mixup_key, cutmix_key, place_key = jax.random.split(key, 4)
        share = jax.random.beta(mixup_key, mixup or 1.0, mixup or 1.0)
        kept = jnp.full((height, width), share)
        if cutmix:
            side = jnp.sqrt(1 - jax.random.beta(cutmix_key, cutmix, cutmix))
            place = jax.random.uniform(place_key, (2,))
            box = _box(place[0], side, height)[:, None] & _box(place[1], side, width)[None, :]
            use_box = jax.random.bernoulli(choice_key) if mixup else jnp.ones((), bool)
            kept = jnp.where(use_box, 1.0 - box, kept)
            share = jnp.where(use_box, 1.0 - box.mean(), share)
        return kept, share

    kept, share = jax.vmap(draw)(keys)
    kept = kept[..., None].astype(images.dtype)
    mixed = kept * images + (1 - kept) * _neighbours(images)
    return mixed, share[:, None] * targets + (1 - share[:, None]) * _neighbours(targets)


def _neighbours(array: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """Return examples 1, 0, 3, 2, …, without a gather, which would copy all to every device."""
    n, *shape = array.shape
    pairs = array[: n - n % 2].reshape(n // 2, 2, *shape)
    swapped = pairs[:, ::-1].reshape(n - n % 2, *shape)
    return jnp.concatenate([swapped, array[-1:]]) if n % 2 else swapped


def _box(centre: Array, side: Array, size: int) -> Array:
    """Return a mask [size] of the pixels in an interval; centre and side are shares of `size`."""
    length = jnp.floor(side * size).astype(jnp.int32)
    middle = jnp.floor(centre * size).astype(jnp.int32)
    start = jnp.clip(middle - length // 2, 0, size)
    stop = jnp.clip(middle + length // 2, 0, size)
    return interval_mask(start, stop, size)


def interval_mask(start: Array, stop: Array, size: int) -> Bool[Array, " size"]:
    """Return whether start ≤ i < stop for each i below `size`."""
    places = jnp.arange(size)
    return (places >= start) & (places < stop)
