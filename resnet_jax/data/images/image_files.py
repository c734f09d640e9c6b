"""Image files from anywhere, read with suspicion; `preprocessing` scales images."""

import io
import os
import stat
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from resnet_jax.data.images.image_bytes import Still, cut_down
from resnet_jax.errors import ConfigError, DataError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's name for 8-bit images with that many channels."""

_CONVERTIBLE = {"1": 1, "L": 1, "P": 1, "LA": 4, "RGB": 4, "RGBA": 4, "CMYK": 4}
"""Bytes that Pillow takes for a pixel of each mode."""

MAX_PIXELS = 25_000_000
"""Of an image of a stranger."""
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
"""Exif's orientation → what sets the image upright."""


def read_upright(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Read a PNG or JPEG file at its own size, as RGB, upright as its Exif data say.

    Raises:
        DataError: not an image, a damaged, an animated or an oversized one.
    """
    try:
        return decode_upright(read_file(path))
    except DataError as error:
        raise DataError(f"{path} can't be read: {error}.") from error.__cause__


def decode_upright(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of a PNG or JPEG at its own size, as RGB; see `open_upright`."""
    return np.asarray(open_upright(data), np.uint8)


def open_upright(data: bytes, *, channels: int = 3, convert: bool = True) -> Image.Image:
    """Decode a PNG or JPEG at its own size, upright as its Exif data say.

    Args:
        data: content of the file.
        channels: of the result: 1, 3 or 4.
        convert: convert the colours of images that have others. Otherwise they are refused.

    Raises:
        DataError: damaged, animated or oversized. The message begins with "it", for the caller to
            say what.
        ConfigError: of other colours that aren't to be converted; likewise.
    """
    still, mode = cut_down(data, max_pixels=MAX_PIXELS), MODES[channels]
    image = _open(still)
    if image.mode not in _CONVERTIBLE or still.depth > 8:
        raise DataError(f"it has {still.depth} bits per channel, not 8")
    if image.mode != mode and not convert:
        raise ConfigError(f"it is {image.mode}, not {mode}")
    pixel = _CONVERTIBLE[image.mode] + (_CONVERTIBLE[mode] if image.mode != mode else 0)
    if image.width * image.height * pixel > _MAX_DECODED_BYTES:
        raise DataError(f"it has {image.width}×{image.height} pixels, too many in {image.mode}")
    image = _load(image)
    if image.mode != mode:
        image = image.convert(mode)
    if still.orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[still.orientation])
    return image


def image_size(data: bytes) -> tuple[int, int]:
    """Height and width of a PNG or JPEG, set upright.

    Raises:
        DataError: damaged, animated or oversized; as `open_upright`.
    """
    still = cut_down(data, max_pixels=MAX_PIXELS)
    size = (still.height, still.width)
    return size if still.orientation < 5 else size[::-1]  # others lie on their side


def decode_image(data: bytes, shape: tuple[int, int, int]) -> UInt8[np.ndarray, "h w c"]:
    """The pixels of a PNG or JPEG that holds exactly that shape at 8 bits.

    Nothing is converted or turned: prepared sets hold their images as they are to be seen.

    Raises:
        DataError: damaged, or a palette, 16 bits, an alpha channel too many or another size. The
            message begins with "it", for the caller to say what.
    """
    height, width, channels = shape
    still = cut_down(data, max_pixels=max(MAX_PIXELS, height * width))
    image = _open(still)
    if (image.mode, image.size, still.depth) != (MODES[channels], (width, height), 8):
        raise DataError(
            f"it is a {image.size[0]}x{image.size[1]} {image.mode} image of {still.depth} bits, not"
            f" {width}x{height} {MODES[channels]} of 8"
        )
    return np.asarray(_load(image)).reshape(shape)


def read_file(path: Path) -> bytes:
    """The bytes of a file that may be an image.

    Raises:
        DataError: it can't be read, is no file or too large; the message doesn't name it.
    """
    try:
        with open(path, "rb", buffering=0, opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise DataError("it isn't a file")
            if status.st_size > MAX_FILE_BYTES:
                raise DataError(f"it has more than {MAX_FILE_BYTES // 2**20} MiB")
            return file.readall()
    except IsADirectoryError as error:
        raise DataError("it isn't a file") from error
    except (OSError, ValueError) as error:  # ValueError for a zero byte in the name
        raise DataError(getattr(error, "strerror", None) or str(error)) from error


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; a pipe isn't waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


def _open(still: Still) -> Image.Image:
    """Let Pillow read the header, of two formats that can't run anything or reach outside."""
    try:
        return Image.open(io.BytesIO(still.data), formats=("PNG", "JPEG"))
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files, SyntaxError among them
        raise DataError("its header isn't sound") from error


def _load(image: Image.Image) -> Image.Image:
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # likewise
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"its pixels are damaged: {reason}") from error
    return image
