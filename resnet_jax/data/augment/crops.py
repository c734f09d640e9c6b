"""Random-resized crops: the part of an image that a network sees, and the pixels of that part.

The crop of Szegedy et al. 2014 (1409.4842, section 6), with torchvision's rules: a share of the
area, an aspect ratio whose logarithm is uniform, ten attempts, then the largest crop at the centre.
"""

import dataclasses
import math

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8

from resnet_jax.data.images.image_bytes import jpeg_header
from resnet_jax.data.images.image_files import MAX_PIXELS, decode_upright
from resnet_jax.errors import DataError

RATIO = (3 / 4, 4 / 3)
"""Smallest and largest width of a crop divided by its height."""

_ATTEMPTS = 10
_MAX_SCANS = 100  # of a progressive JPEG; encoders write about ten

cv2.setNumThreads(0)  # images are decoded in several threads or processes


@dataclasses.dataclass(frozen=True)
class Box:
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def crop_draws(seed: int, epoch: int, index: int) -> np.ndarray:
    """Return the random numbers of an example in an epoch: float64 [10, 4], in [0, 1).

    They are raw Philox bits, whose stream NumPy keeps stable between versions.
    """
    key = np.array([seed, epoch << 32 | index], np.uint64)
    # With the high bit of the counter, the stream differs from that of `epoch_permutation`.
    bits = np.random.Philox(key=key, counter=np.array([0, 0, 0, 1], np.uint64))
    raw = bits.random_raw(4 * _ATTEMPTS).reshape(_ATTEMPTS, 4)
    return (raw >> np.uint64(11)) * 2.0**-53


def crop_box(height: int, width: int, draws: np.ndarray, *, area: tuple[float, float]) -> Box:
    """Choose a part of an image.

    Args:
        height, width: of the image.
        draws: random numbers from `crop_draws`; each attempt uses four: area, ratio, row, column.
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
    data: bytes | np.ndarray,
    draws: np.ndarray,
    *,
    area: tuple[float, float],
    into: UInt8[np.ndarray, "size size 3"],
) -> None:
    """Scale a random part of an image to fill `into`, in place.

    Scaling is bilinear without smoothing, as in TensorFlow and OpenCV. Arguments and errors as
    `decode_part`.
    """
    size = len(into)
    part = decode_part(data, draws, area=area, size=size)
    cv2.resize(part, (size, size), dst=into, interpolation=cv2.INTER_LINEAR)


def decode_part(
    data: bytes | np.ndarray, draws: np.ndarray, *, area: tuple[float, float], size: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image, and cut out the part that `crop_box` chooses.

    If the part of a JPEG is more than twice as large as `size`, the JPEG is decoded at a half, a
    quarter or an eighth of its size.

    Args:
        data: content of a PNG or JPEG file, or uint8 [h, w, 3].
        draws: random numbers from `crop_draws`.
        area: smallest and largest share of the image's area.
        size: pixels to which the part will be scaled.

    Raises:
        DataError: damaged, animated, too large or of another shape. The message begins with "it",
            which stands for the image.
    """
    if isinstance(data, np.ndarray):
        if data.dtype != np.uint8 or data.ndim != 3 or data.shape[-1] != 3 or not data.size:
            raise DataError(f"it is {data.dtype} {list(data.shape)}, not uint8 [h, w, 3]")
        image, box = data, crop_box(data.shape[0], data.shape[1], draws, area=area)
    elif found := _decode_jpeg(data, draws, area=area, size=size):
        image, box = found
    else:
        image = decode_upright(data)
        height, width, _ = image.shape
        box = crop_box(height, width, draws, area=area)
    return image[box.top : box.top + box.height, box.left : box.left + box.width]


def _decode_jpeg(
    data: bytes, draws: np.ndarray, *, area: tuple[float, float], size: int
) -> tuple[np.ndarray, Box] | None:
    """Return the pixels of an undamaged, upright JPEG and the part to cut out; else None.

    Pillow decodes all other files: it is slower, but supports more formats and reports errors.
    simplejpeg and Pillow use libjpeg-turbo, and give the same pixels.
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
    except ValueError:
        return None
    scale = image.shape[0] / height, image.shape[1] / width
    top, left = round(box.top * scale[0]), round(box.left * scale[1])
    bottom = max(top + 1, round((box.top + box.height) * scale[0]))
    right = max(left + 1, round((box.left + box.width) * scale[1]))
    return image, Box(top, left, bottom - top, right - left)


def _is_plain_jpeg(data: bytes) -> bool:
    """Whether a file is an upright JPEG whose number of scans is limited.

    Scans are counted only if the first scan lacks components: counting reads the whole file, which
    takes a tenth of the time of decoding.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return False
    try:
        header = jpeg_header(data)
    except DataError:
        return False
    one_scan = data[header.scan + 4 : header.scan + 5] == bytes([header.components])
    few_scans = one_scan or data.count(b"\xff\xda", header.scan) <= _MAX_SCANS
    return header.orientation == 1 and few_scans
