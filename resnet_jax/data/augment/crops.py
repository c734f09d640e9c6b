"""Random-resized crops: which part of an image a network sees, and that part's pixels.

The crop of Szegedy et al. 2014 (1409.4842, section 6), by the rules of torchvision: a share of the
area, an aspect ratio whose logarithm is uniform, ten attempts, then the largest crop at the centre.
"""

import dataclasses
import math

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8

from resnet_jax.data.images.image_bytes import exif_orientation
from resnet_jax.data.images.image_files import MAX_PIXELS, decode_upright
from resnet_jax.errors import DataError

RATIO = (3 / 4, 4 / 3)
"""Smallest and largest width of a crop divided by its height."""

_ATTEMPTS = 10
_MAX_SCANS = 100  # of a JPEG in several; encoders write about ten
_EXIF, _FRAMES, _SCAN = 0xE1, {0xC0, 0xC1, 0xC2}, 0xDA  # markers

cv2.setNumThreads(0)  # images are shared out among processes or threads already


@dataclasses.dataclass(frozen=True)
class Box:
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def crop_draws(seed: int, epoch: int, index: int) -> np.ndarray:
    """The random numbers in 0…1 for one example in one epoch: float64 [10, 4].

    They are raw Philox bits, whose stream NumPy keeps stable between versions.
    """
    key = np.array([seed, epoch << 32 | index], np.uint64)
    # The high bit of the counter keeps them apart from the permutations of epochs.
    bits = np.random.Philox(key=key, counter=np.array([0, 0, 0, 1], np.uint64))
    raw = bits.random_raw(4 * _ATTEMPTS).reshape(_ATTEMPTS, 4)
    return (raw >> np.uint64(11)) * 2.0**-53


def crop_box(height: int, width: int, draws: np.ndarray, *, area: tuple[float, float]) -> Box:
    """The part of an image that random numbers choose.

    Args:
        height, width: of the image.
        draws: as from `crop_draws`; of each attempt the share, the ratio, the row, the column.
        area: smallest and largest share of the image's area.
    """
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for share, log_ratio, row, column in draws.tolist():
        target = height * width * (area[0] + share * (area[1] - area[0]))
        ratio = math.exp(low + log_ratio * (high - low))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(row * (height - h + 1)), int(column * (width - w + 1)), h, w)
    ratio = min(max(width / height, RATIO[0]), RATIO[1])
    w, h = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def decode_crop(
    data: bytes,
    draws: np.ndarray,
    *,
    area: tuple[float, float],
    into: UInt8[np.ndarray, "size size 3"],
) -> None:
    """Decode a PNG or JPEG, and scale the part that `draws` choose to fill an array, in place.

    Scaling is bilinear, as TensorFlow's and OpenCV's: it isn't smoothed where it shrinks. Raises as
    `decode_part`.
    """
    size = len(into)
    part = decode_part(data, draws, area=area, size=size)
    cv2.resize(part, (size, size), dst=into, interpolation=cv2.INTER_LINEAR)


def decode_part(
    data: bytes, draws: np.ndarray, *, area: tuple[float, float], size: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Decode a PNG or JPEG, and cut out the part that `draws` choose.

    A JPEG of which it is more than twice as large as `size` is decoded at a half, a quarter or an
    eighth.

    Raises:
        DataError: damaged, animated or oversized. The message begins with "it", for the caller to
            say what.
    """
    if found := _decode_jpeg(data, draws, area=area, size=size):
        image, box = found
    else:
        image = decode_upright(data)
        height, width, _ = image.shape
        box = crop_box(height, width, draws, area=area)
    return image[box.top : box.top + box.height, box.left : box.left + box.width]


def _decode_jpeg(
    data: bytes, draws: np.ndarray, *, area: tuple[float, float], size: int
) -> tuple[np.ndarray, Box] | None:
    """The pixels of a JPEG that is sound and upright, and the part; None if it is something else.

    What is odd is left to Pillow, which is slower, takes more kinds of files, and says why it
    refuses one. Both decoders are libjpeg-turbo and give the same pixels.
    """
    if not _is_plain_jpeg(data):
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        if height * width > MAX_PIXELS or space not in ("YCbCr", "Gray", "RGB"):
            return None
        box = crop_box(height, width, draws, area=area)
        shrink = min(box.height, box.width) // size
        if shrink < 2:
            return simplejpeg.decode_jpeg(data, strict=True), box
        image = simplejpeg.decode_jpeg(
            data,
            strict=True,
            min_height=-(-height // min(shrink, 8)),
            min_width=-(-width // min(shrink, 8)),
            min_factor=2,
        )
    except (ValueError, DataError):
        return None
    scale = image.shape[0] / height, image.shape[1] / width
    top, left = round(box.top * scale[0]), round(box.left * scale[1])
    bottom = max(top + 1, round((box.top + box.height) * scale[0]))
    right = max(left + 1, round((box.left + box.width) * scale[1]))
    return image, Box(top, left, bottom - top, right - left)


def _is_plain_jpeg(data: bytes) -> bool:
    """Whether a file is a JPEG that is upright, and isn't one that takes for ever to decode.

    It looks at the segments before the pixels only: all of the file takes a tenth of its decoding.
    """
    at, components, end = 2, 0, len(data) - 10
    if data[:2] != b"\xff\xd8":
        return False
    while at < end and data[at] == 0xFF:
        marker, length = data[at + 1], data[at + 2] << 8 | data[at + 3]
        if marker == _EXIF and data[at + 4 : at + 10] == b"Exif\0\0":
            if exif_orientation(data[at + 10 : at + 2 + length]) != 1:
                return False
        elif marker in _FRAMES:
            components = data[at + 9]
        elif marker == _SCAN:
            in_one_scan = data[at + 4] == components
            return in_one_scan or data.count(b"\xff\xda", at) <= _MAX_SCANS
        at += 2 + length
    return False
