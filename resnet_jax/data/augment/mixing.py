"""Mixup and CutMix: images and labels of two examples in one.

Each example is mixed with its neighbour in the batch, 0 with 1, 2 with 3, …: batches are random
permutations already, and neighbours lie on one device.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def mix(
    images: Float[Array, "n h w c"],
    targets: Float[Array, "n k"],
    keys: jax.Array,
    *,
    mixup: float,
    cutmix: float,
) -> tuple[Float[Array, "n h w c"], Float[Array, "n k"]]:
    """Mix each example with its neighbour; of an odd number the last stays as it is.

    Mixup adds λ of one and 1 − λ of the other (Zhang et al. 2017, 1710.09412). CutMix replaces a
    box of the share 1 − λ by the other's (Yun et al. 2019, 1905.04899); where it reaches over the
    edge it is cut, and λ is what is left. λ ~ Beta(α, α). With both, each example has one of them
    with probability ½.

    Args:
        images: normalised.
        targets: probabilities of the classes.
        keys: one random key per example.
        mixup, cutmix: α of each; 0 for none.
    """
    if not (mixup or cutmix) or len(images) < 2:
        return images, targets
    _, height, width, _ = images.shape

    def draw(key: jax.Array) -> tuple[Array, Array, Array]:
        """The share of an example itself, at each pixel [h, w]; of its label; and of neither."""
        choice_key, mixup_key, cutmix_key, place_key = jax.random.split(key, 4)
        share = jax.random.beta(mixup_key, mixup or 1.0, mixup or 1.0)
        kept, box = jnp.full((height, width), share), jnp.zeros((), bool)
        if cutmix:
            side = jnp.sqrt(1 - jax.random.beta(cutmix_key, cutmix, cutmix))
            place = jax.random.uniform(place_key, (2,))
            rows = _box(place[0], side, height)[:, None] & _box(place[1], side, width)[None, :]
            box = jax.random.bernoulli(choice_key) if mixup else jnp.ones((), bool)
            kept = jnp.where(box, 1.0 - rows, kept)
            share = jnp.where(box, 1.0 - rows.mean(), share)
        return kept, share, box

    kept, share, _ = jax.vmap(draw)(keys)
    kept = kept[..., None].astype(images.dtype)
    mixed = kept * images + (1 - kept) * _neighbours(images)
    return mixed, share[:, None] * targets + (1 - share[:, None]) * _neighbours(targets)


def _neighbours(array: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """Examples 1, 0, 3, 2, …; a gather would bring them all to every device."""
    n, *shape = array.shape
    pairs = array[: n - n % 2].reshape(n // 2, 2, *shape)
    swapped = pairs[:, ::-1].reshape(n - n % 2, *shape)
    return jnp.concatenate([swapped, array[-1:]]) if n % 2 else swapped


def _box(centre: Array, side: Array, size: int) -> Array:
    """Which of so many pixels lie within a box around a centre; all in shares of the size."""
    length = jnp.floor(side * size).astype(jnp.int32)
    middle = jnp.floor(centre * size).astype(jnp.int32)
    start = jnp.clip(middle - length // 2, 0, size)
    stop = jnp.clip(middle + length // 2, 0, size)
    places = jnp.arange(size)
    return (places >= start) & (places < stop)
