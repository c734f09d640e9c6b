"""Image files from anywhere, read with suspicion."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from resnet_jax.errors import DataError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's name for 8-bit images with that many channels."""

_CONVERTIBLE = {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK"}
_MAX_PIXELS = 50_000_000


def read_image(
    path: Path, shape: tuple[int, int, int], *, resize: bool = False
) -> UInt8[np.ndarray, "h w c"]:
    """Read a PNG or JPEG file as uint8 of exactly `shape`.

    Args:
        path: of the file.
        shape: (h, w, c) that the model takes.
        resize: make an image fit: scale it so that it covers `shape`, cut out its centre, and
            convert its colours. Otherwise an image that doesn't fit is refused.

    Raises:
        DataError: not an image, a damaged or an oversized one, or one that doesn't fit.
    """
    height, width, channels = shape
    mode = MODES[channels]
    try:
        # Only formats that can't run anything or reach outside; Pillow reads the header first.
        with Image.open(path, formats=["PNG", "JPEG"]) as opened:
            image: Image.Image = opened
            if image.width * image.height > _MAX_PIXELS:
                raise DataError(f"{path} has {image.width}×{image.height} pixels, too many.")
            fits = image.size == (width, height) and image.mode == mode
            if not fits and not resize:
                raise DataError(
                    f"{path} is {image.width}×{image.height} {image.mode}, but the model takes"
                    f" {width}×{height} {mode}; --resize makes images fit."
                )
            if image.mode not in _CONVERTIBLE:
                raise DataError(f"{path} is of mode {image.mode}, not of 8 bits per channel.")
            image = image.convert(mode)
            if image.size != (width, height):
                image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
            return np.asarray(image, np.uint8).reshape(shape)
    except UnidentifiedImageError:
        raise DataError(f"{path} isn't a PNG or JPEG image.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} can't be read: {reason}") from None
