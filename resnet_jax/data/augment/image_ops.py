"""Pillow's image operations in JAX, for TrivialAugment and RandAugment.

Each operation takes an image, uint8 [h, w, 3], and a float32 scalar. Colour operations give
Pillow's values, except for ties of rounding. Geometric operations take the nearest pixel, and black
outside of the image; they differ from Pillow where a position falls on the edge between two
pixels, which Pillow rounds in fixed point.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

Image = UInt8[Array, "h w 3"]
Scalar = Float[Array, ""] | float
Operation = Callable[[Image, Float[Array, ""]], Image]

_SMOOTH = ((1, 1, 1), (1, 5, 1), (1, 1, 1))  # of ImageFilter.SMOOTH; divided by 13


def identity(image: Image, _: Array) -> Image:
    """Return the image unchanged."""
    return image


def brightness(image: Image, factor: Array) -> Image:
    """`ImageEnhance.Brightness`."""
    return _blend(jnp.zeros_like(image), image, factor)


def color(image: Image, factor: Array) -> Image:
    """`ImageEnhance.Color`."""
    return _blend(_grey(image)[..., None], image, factor)


def contrast(image: Image, factor: Array) -> Image:
    """`ImageEnhance.Contrast`."""
    grey = _grey(image)
    # In integers, the sum is exact. Pillow adds 1/2 and truncates.
    mean = (2 * grey.astype(jnp.int32).sum() + grey.size) // (2 * grey.size)
    return _blend(mean.astype(jnp.uint8), image, factor)


def sharpness(image: Image, factor: Array) -> Image:
    """`ImageEnhance.Sharpness`; the outermost pixels don't change."""
    height, width, _ = image.shape
    if min(height, width) < 3:
        return image
    pixels = image.astype(jnp.float32)
    smooth = sum(
        weight / 13 * pixels[y : height - 2 + y, x : width - 2 + x]
        for y, row in enumerate(_SMOOTH)
        for x, weight in enumerate(row)
    )
    inner = jnp.clip(jnp.floor(smooth + 0.5), 0, 255).astype(jnp.uint8)
    return _blend(jnp.asarray(image).at[1:-1, 1:-1].set(inner), image, factor)


def posterize(image: Image, bits: Array) -> Image:
    """`ImageOps.posterize`: keep the highest `bits` bits."""
    dropped = (8 - bits).astype(jnp.uint8)
    return (image >> dropped) << dropped


def solarize(image: Image, threshold: Array) -> Image:
    """`ImageOps.solarize`: invert values of at least `threshold`."""
    return jnp.where(image < threshold, image, 255 - image)


def solarize_add(image: Image, amount: Array) -> Image:
    """Add `amount` to values below 128 (timm's `solarize_add`)."""
    added = jnp.minimum(image.astype(jnp.int32) + amount.astype(jnp.int32), 255)
    return jnp.where(image < 128, added, image).astype(jnp.uint8)


def invert(image: Image, _: Array) -> Image:
    """`ImageOps.invert`."""
    return 255 - image


def autocontrast(image: Image, _: Array) -> Image:
    """`ImageOps.autocontrast`: stretch each channel to 0…255."""
    low = image.min(axis=(0, 1)).astype(jnp.int32)
    high = image.max(axis=(0, 1)).astype(jnp.int32)
    span = jnp.maximum(high - low, 1)
    stretched = (image.astype(jnp.int32) - low) * 255 // span
    return jnp.where(high > low, stretched, image).astype(jnp.uint8)


def equalize(image: Image, _: Array) -> Image:
    """`ImageOps.equalize`: make the values of each channel about equally frequent."""

    def equalize_channel(channel: Array) -> Array:
        counts = jnp.bincount(channel.reshape(-1), length=256)
        last = counts[channel.max()]
        step = (channel.size - last) // 255
        before = jnp.cumsum(counts) - counts
        table = jnp.minimum((step // 2 + before) // jnp.maximum(step, 1), 255)
        return jnp.where(step > 0, table[channel], channel).astype(jnp.uint8)

    return jax.vmap(equalize_channel, in_axes=2, out_axes=2)(image)


def shear_x(image: Image, slope: Array) -> Image:
    """`Image.transform` by (1, slope, 0, 0, 1, 0)."""
    return _affine(image, 1.0, slope, 0.0, 0.0, 1.0, 0.0)


def shear_y(image: Image, slope: Array) -> Image:
    """`Image.transform` by (1, 0, 0, slope, 1, 0)."""
    return _affine(image, 1.0, 0.0, 0.0, slope, 1.0, 0.0)


def translate_x(image: Image, pixels: Array) -> Image:
    """Move right by `pixels`."""
    return _affine(image, 1.0, 0.0, -pixels, 0.0, 1.0, 0.0)


def translate_y(image: Image, pixels: Array) -> Image:
    """Move down by `pixels`."""
    return _affine(image, 1.0, 0.0, 0.0, 0.0, 1.0, -pixels)


def rotate(image: Image, degrees: Array) -> Image:
    """`Image.rotate`: anticlockwise about the centre."""
    height, width, _ = image.shape
    x, y = width / 2, height / 2
    cos, sin = jnp.cos(jnp.deg2rad(degrees)), jnp.sin(jnp.deg2rad(degrees))
    return _affine(image, cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


def _affine(
    image: Image, a: Scalar, b: Scalar, c: Scalar, d: Scalar, e: Scalar, f: Scalar
) -> Image:
    """Set pixel (x, y) to the pixel at (ax + by + c, dx + ey + f); positions are pixel centres."""
    height, width, _ = image.shape
    y, x = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    column = jnp.floor(a * x + b * y + c).astype(jnp.int32)
    row = jnp.floor(d * x + e * y + f).astype(jnp.int32)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    pixels = image[jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)]
    return jnp.where(inside[..., None], pixels, 0)


def _grey(image: Image) -> UInt8[Array, "h w"]:
    """`Image.convert("L")`, in Pillow's fixed point."""
    weights = jnp.array([19595, 38470, 7471], jnp.int32)
    return ((image.astype(jnp.int32) @ weights + 0x8000) >> 16).astype(jnp.uint8)


def _blend(degenerate: Array, image: Image, factor: Array) -> Image:
    """`Image.blend`: interpolate or extrapolate from `degenerate` to `image`, and truncate."""
    start = degenerate.astype(jnp.float32)
    blended = start + factor * (image.astype(jnp.float32) - start)
    return jnp.clip(blended, 0, 255).astype(jnp.uint8)
