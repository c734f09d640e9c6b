"""Reads PNG and JPEG files from untrusted sources; `preprocessing` scales images."""

import io
import os
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from resnet_jax.data.images.image_bytes import StrippedImage, strip_metadata
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.utils.files import NotRegularFileError, open_regular_file

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode of 8-bit images, by number of channels."""

BYTES_PER_PIXEL = {"1": 1, "L": 1, "P": 1, "LA": 4, "RGB": 4, "RGBA": 4, "CMYK": 4}
"""Bytes that Pillow takes for a pixel, by mode of 8-bit images; other modes are refused."""

MAX_PIXELS = 25_000_000
"""Largest number of pixels of an image."""
_MAX_DECODED_BYTES = 150_000_000
MAX_FILE_BYTES = 32 * 2**20

_Transpose = Image.Transpose
_UPRIGHT = {
    2: _Transpose.FLIP_LEFT_RIGHT,
    3: _Transpose.ROTATE_180,
    4: _Transpose.FLIP_TOP_BOTTOM,
    5: _Transpose.TRANSPOSE,
    6: _Transpose.ROTATE_270,
    7: _Transpose.TRANSVERSE,
    8: _Transpose.ROTATE_90,
}
"""Exif orientation → operation that makes the image upright."""


def decode_upright(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """Decode a PNG or JPEG at its own size, as RGB; see `open_upright`."""
    return np.asarray(open_upright(data), np.uint8)


def open_upright(data: bytes, *, channels: int = 3, convert: bool = True) -> Image.Image:
    """Decode a PNG or JPEG at its own size, upright by its Exif orientation.

    Args:
        data: content of the file.
        channels: channels of the result: 1, 3 or 4.
        convert: convert images of other colours. Otherwise they raise ConfigError.

    Raises:
        DataError: damaged, animated or too large. The message begins with "it", which stands for
            the image.
        ConfigError: other colours, and not `convert`; or `channels` that no file has. The message
            begins with "it".
    """
    if channels not in MODES:
        raise ConfigError(f"it is the content of a file, which can't have {channels} channels")
    stripped, mode = strip_metadata(data, max_pixels=MAX_PIXELS), MODES[channels]
    image = _open(stripped)
    if image.mode not in BYTES_PER_PIXEL or stripped.depth > 8:
        raise DataError(f"it has {stripped.depth} bits per channel, not 8")
    if image.mode != mode and not convert:
        raise ConfigError(f"it is {image.mode}, not {mode}")
    pixel_bytes = BYTES_PER_PIXEL[image.mode]
    if image.mode != mode:
        pixel_bytes += BYTES_PER_PIXEL[mode]
    if image.width * image.height * pixel_bytes > _MAX_DECODED_BYTES:
        raise DataError(f"it has {image.width}×{image.height} pixels, too many in {image.mode}")
    image = _load(image)
    if image.mode != mode:
        image = image.convert(mode)
    if stripped.orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[stripped.orientation])
    return image


def image_size(data: bytes) -> tuple[int, int]:
    """Return height and width of a PNG or JPEG after `open_upright`.

    Raises:
        DataError: damaged, animated or too large, as in `open_upright`.
    """
    stripped = strip_metadata(data, max_pixels=MAX_PIXELS)
    size = (stripped.height, stripped.width)
    return size if stripped.orientation < 5 else size[::-1]  # 5 … 8 swap the sides


def decode_image(data: bytes, shape: tuple[int, int, int]) -> UInt8[np.ndarray, "h w c"]:
    """Decode a PNG or JPEG that has exactly `shape` at 8 bits, as stored.

    Nothing is converted, and the Exif orientation is ignored: the images of prepared sets are
    stored as they are to be seen.

    Raises:
        DataError: damaged, or another size, colour space or depth. The message begins with "it",
            which stands for the image.
    """
    height, width, channels = shape
    stripped = strip_metadata(data, max_pixels=max(MAX_PIXELS, height * width))
    image = _open(stripped)
    if (image.mode, image.size, stripped.depth) != (MODES[channels], (width, height), 8):
        raise DataError(
            f"it is a {image.size[0]}x{image.size[1]} {image.mode} image of {stripped.depth} bits,"
            f" not {width}x{height} {MODES[channels]} of 8"
        )
    return np.asarray(_load(image)).reshape(shape)


def read_file(path: Path) -> bytes:
    """Read a file that may be an image.

    Raises:
        DataError: it can't be read, isn't a regular file or is too large. The message doesn't
            contain the path.
    """
    try:
        with open_regular_file(path) as file:
            if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
                raise DataError(f"it has more than {MAX_FILE_BYTES // 2**20} MiB")
            return file.read()
    except (IsADirectoryError, NotRegularFileError) as error:
        raise DataError("it isn't a file") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise DataError(getattr(error, "strerror", None) or str(error)) from error


def _open(stripped: StrippedImage) -> Image.Image:
    """Let Pillow read the header, with two decoders that run no code and open no other file."""
    try:
        return Image.open(io.BytesIO(stripped.data), formats=("PNG", "JPEG"))
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many types for damaged files, even SyntaxError
        raise DataError("its header isn't sound") from error


def _load(image: Image.Image) -> Image.Image:
    """Let Pillow decode the pixels."""
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # many types, as in `_open`
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"its pixels are damaged: {reason}") from error
    return image
