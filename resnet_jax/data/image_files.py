"""Image files from anywhere, read with suspicion."""

import io
import os
import stat
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from resnet_jax.data.image_bytes import Still, cut_down
from resnet_jax.errors import ConfigError, DataError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's name for 8-bit images with that many channels."""

_CONVERTIBLE = {"1": 1, "L": 1, "P": 1, "LA": 4, "RGB": 4, "RGBA": 4, "CMYK": 4}
"""Bytes that Pillow takes for a pixel of each mode."""

MAX_PIXELS = 25_000_000
"""Of an image of a stranger."""
_MAX_DECODED_BYTES = 150_000_000
MAX_FILE_BYTES = 32 * 2**20
_DRAFT = 4  # times the size that is wanted

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


def read_image(
    path: Path, shape: tuple[int, int, int], *, resize: bool = False
) -> UInt8[np.ndarray, "h w c"]:
    """Read a PNG or JPEG file as uint8 of exactly `shape`, upright as its Exif data say.

    Args:
        path: of the file.
        shape: (h, w, c) that the model takes.
        resize: make an image fit: scale it so that it covers `shape`, cut out its centre, and
            convert its colours. Otherwise an image that doesn't fit is refused.

    Raises:
        DataError: not an image, a damaged, an animated or an oversized one, or one that doesn't
            fit.
    """
    try:
        return _fit(cut_down(read_file(path), max_pixels=MAX_PIXELS), shape, resize=resize)
    except DataError as error:
        raise DataError(f"{path} can't be read: {error}.") from error.__cause__


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
    """The pixels of a PNG or JPEG at its own size, as RGB, upright as its Exif data say.

    Raises:
        DataError: damaged, animated or oversized. The message begins with "it", for the caller to
            say what.
    """
    still = cut_down(data, max_pixels=MAX_PIXELS)
    return _fit(still, (*_upright(still), 3), resize=True)


def fit_image(
    data: bytes, shape: tuple[int, int, int], *, scale: bool = True
) -> UInt8[np.ndarray, "h w c"]:
    """The pixels of a PNG or JPEG, upright, colours converted, scaled and cropped to `shape`.

    It is scaled so that it covers `shape`, smoothed where it shrinks, and its centre cut out.

    Raises:
        DataError: damaged, animated or oversized. The message begins with "it", for the caller to
            say what.
        ConfigError: without `scale` it must have that height and width, and hasn't; likewise.
    """
    still = cut_down(data, max_pixels=MAX_PIXELS)
    if not scale and (height_and_width := _upright(still)) != shape[:2]:
        found, wanted = ("{}×{}".format(*size) for size in (height_and_width, shape))
        raise ConfigError(f"it is {found} (height×width), not {wanted}")
    return _fit(still, shape, resize=True)


def image_size(data: bytes) -> tuple[int, int]:
    """Height and width of a PNG or JPEG, set upright; raises as `fit_image`."""
    return _upright(cut_down(data, max_pixels=MAX_PIXELS))


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


def _upright(still: Still) -> tuple[int, int]:
    size = (still.height, still.width)
    return size if still.orientation < 5 else size[::-1]  # others lie on their side


def _fit(still: Still, shape: tuple[int, int, int], *, resize: bool) -> UInt8[np.ndarray, "h w c"]:
    height, width, channels = shape
    mode = MODES[channels]
    lies = still.orientation >= 5  # on its side
    size = _upright(still)[::-1]
    image = _open(still)
    if image.mode not in _CONVERTIBLE or still.depth > 8:
        raise DataError(f"it has {still.depth} bits per channel, not 8")
    if not resize and (size, image.mode) != ((width, height), mode):
        raise DataError(
            f"it is {size[0]}×{size[1]} {image.mode}, but the model takes {width}×{height} {mode};"
            " --resize makes images fit"
        )
    if still.format == "JPEG" and size != (width, height):
        # What is much too large is decoded at a half, a quarter or an eighth of its size.
        wanted = (_DRAFT * height, _DRAFT * width) if lies else (_DRAFT * width, _DRAFT * height)
        cast(JpegImageFile, image).draft(image.mode, wanted)
    pixel = _CONVERTIBLE[image.mode] + (_CONVERTIBLE[mode] if image.mode != mode else 0)
    if image.width * image.height * pixel > _MAX_DECODED_BYTES:
        raise DataError(f"it has {size[0]}×{size[1]} pixels, too many in {image.mode}")
    image = _load(image)
    if image.mode != mode:
        image = image.convert(mode)
    fitting = (height, width) if lies else (width, height)
    if image.size != fitting:
        image = ImageOps.fit(image, fitting, Image.Resampling.BILINEAR)
    if still.orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[still.orientation])
    return np.asarray(image, np.uint8).reshape(shape)


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
