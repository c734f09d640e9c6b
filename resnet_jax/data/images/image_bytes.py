"""PNG and JPEG files reduced to what their pixels need, before a decoder reads them.

Everything else is dropped unread: texts, colour profiles, previews, further images, and Exif
except the orientation. Sizes and checksums are checked before any pixel is decoded. Formats: PNG
(W3C, third edition), JPEG (ITU-T T.81, annex B), Exif's orientation (TIFF 6.0, tag 0x0112).

Pillow's own limits don't suffice. Pillow refuses images with sound pixels beside a large text or
colour profile (`MAX_TEXT_CHUNK`, `MAX_TEXT_MEMORY`) or a short JFIF segment, and warns of torn
Exif and MPF segments. It decodes PNGs with missing rows (as black), with unknown critical chunks,
with two headers or with 16 bits (cut to 8 in RGB), and JPEGs with any number of scans. Its limit of
pixels, `MAX_IMAGE_PIXELS`, is global to the process, and warns of half as many pixels as it
refuses. `tests/data/images/test_image_files.py` has a file of each kind.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from resnet_jax.errors import DataError

_PNG = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by PNG colour type
_ADAM7 = (  # first column and row of each pass, and the steps between columns and rows
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)),
    (0, 1, 1, 2),
)
_INFLATE_BYTES = 2**20
_PNG_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_JPEG = b"\xff\xd8\xff"
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0 … SOF15
_STANDALONE = {0x00, 0x01, *range(0xD0, 0xD9)}  # markers without a segment
_SCAN, _END, _COMMENT, _APP1 = 0xDA, 0xD9, 0xFE, 0xE1
_ORIENTATION, _SHORT = 0x0112, 3

_MAX_SCANNED_PIXELS = 10**9
"""Limit of scans × pixels of a JPEG: for a scan of a few bytes, a decoder visits all pixels."""


class StrippedImage(NamedTuple):
    """An image file without metadata, not decoded yet."""

    width: int
    height: int
    depth: int  # bits per channel
    orientation: int  # 1 … 8, as in Exif; 1, upright, if the file has none
    data: bytes


class JpegHeader(NamedTuple):
    """A JPEG up to its first scan."""

    width: int
    height: int
    depth: int  # bits per channel
    components: int
    orientation: int  # as in `StrippedImage`
    segments: list[bytes]  # those that a decoder needs
    scan: int  # position of the first scan


def strip_metadata(data: bytes, *, max_pixels: int) -> StrippedImage:
    """Find the image in the content of a PNG or JPEG file.

    Raises:
        DataError: not a PNG or JPEG, truncated, damaged, animated, or more than `max_pixels`. The
            message begins with "it", which stands for the image.
    """
    if not data:
        raise DataError("it is empty")
    if data.startswith(_PNG):
        return _strip_png(data, max_pixels)
    if data.startswith(_JPEG):
        return _strip_jpeg(data, max_pixels)
    raise DataError("it isn't a PNG or JPEG image")


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if not width or not height:
        raise DataError("it has no pixels")
    if width * height > max_pixels:
        raise DataError(f"it has {width}×{height} pixels, too many")


def _strip_png(data: bytes, max_pixels: int) -> StrippedImage:
    kept: list[bytes | memoryview] = [_PNG]
    packed: list[memoryview] = []
    header, exif = b"", b""
    for kind, body, whole in _chunks(data):
        if not header and kind != b"IHDR":
            raise DataError("it begins without a header")
        if kind in _PNG_NEEDED:
            if zlib.crc32(whole[4:-4]) != struct.unpack(">L", whole[-4:])[0]:
                raise DataError(f"its part {kind.decode()} fails its checksum")
            kept.append(whole)
        elif not kind[0] & 0x20:  # the first letter is a capital: a critical chunk
            raise DataError("it has a part that isn't known")
        if kind == b"IHDR":
            if header or len(body) != 13:
                raise DataError("its header isn't sound")
            header = bytes(body)
        elif kind == b"IDAT":
            packed.append(body)
        elif kind == b"eXIf":
            exif = exif or bytes(body)
        elif kind == b"acTL" and int.from_bytes(body[:4], "big") > 1:
            raise DataError("it is animated; take one image of it")
        elif kind == b"IEND":
            break
    else:
        raise DataError("it ends too early")
    width, height, depth = struct.unpack_from(">LLB", header)
    _check_size(width, height, max_pixels)
    _check_complete(packed, header)
    return StrippedImage(width, height, depth, exif_orientation(exif), b"".join(kept))


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, memoryview]]:
    """Yield (type, content, whole chunk) of each chunk of a PNG, up to its end or a torn chunk."""
    at, view = len(_PNG), memoryview(data)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">L4s", data, at)
        end = at + 12 + length
        if end > len(data):
            return
        yield kind, view[at + 8 : end - 4], view[at:end]
        at = end


def _check_complete(packed: list[memoryview], header: bytes) -> None:
    """Inflate the pixels of a PNG, and raise DataError if some are missing."""
    width, height, depth, color, _, _, interlaced = struct.unpack(">LLBBBBB", header)
    missing = 0
    for x, y, step_x, step_y in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - x) // step_x), -(-(height - y) // step_y)
        if columns > 0:
            missing += max(rows, 0) * (1 + (columns * depth * _CHANNELS.get(color, 0) + 7) // 8)
    inflate = zlib.decompressobj()
    try:
        for part in packed:
            rest: bytes | memoryview = part
            while rest and missing > 0 and not inflate.eof:
                missing -= len(inflate.decompress(rest, _INFLATE_BYTES))
                rest = inflate.unconsumed_tail
        missing -= len(inflate.flush(_INFLATE_BYTES)) if missing > 0 else 0
    except zlib.error as error:
        raise DataError("its pixels are damaged") from error
    if missing > 0:
        raise DataError("its pixels end too early")


def _strip_jpeg(data: bytes, max_pixels: int) -> StrippedImage:
    header = jpeg_header(data)
    _check_size(header.width, header.height, max_pixels)
    # In coded pixels 0xFF is followed by 0: this counts scans, and the scans of previews.
    scans = data.count(b"\xff\xda", header.scan)
    if scans * header.width * header.height > _MAX_SCANNED_PIXELS:
        raise DataError("it has more scans than an image needs")
    stripped = b"".join([data[:2], *header.segments, memoryview(data)[header.scan :]])
    return StrippedImage(header.width, header.height, header.depth, header.orientation, stripped)


def jpeg_header(data: bytes) -> JpegHeader:
    """Read the segments of a JPEG before its first scan.

    Raises:
        DataError: truncated, or without pixels or a header. The message begins with "it", which
            stands for the image.
    """
    segments: list[bytes] = []
    frame, exif, at = b"", b"", 2
    try:
        while True:
            at = data.find(b"\xff", at)  # decoders skip other bytes between segments
            while at >= 0 and data[at + 1] == 0xFF:
                at += 1
            if at < 0:
                raise DataError("it ends too early")
            marker = data[at + 1]
            if marker == _END:
                raise DataError("it has no pixels")
            if marker == _SCAN:
                break
            if marker in _STANDALONE:
                at += 2
                continue
            end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            if end < at + 4 or end > len(data):
                raise DataError("it ends too early")
            body = data[at + 4 : end]
            if marker in _FRAMES:
                if frame:
                    raise DataError("its header isn't sound")
                frame = body
            if marker == _APP1 and body.startswith(b"Exif\0\0"):
                exif = exif or body[6:]
            if _describes_pixels(marker, body):
                segments.append(data[at:end])
            at = end
        if not frame:
            raise DataError("it begins without a header")
        depth, height, width, components = struct.unpack_from(">BHHB", frame)
    except (struct.error, IndexError):
        raise DataError("it ends within its header") from None
    return JpegHeader(width, height, depth, components, exif_orientation(exif), segments, at)


def _describes_pixels(marker: int, body: bytes) -> bool:
    """Whether a decoder needs a segment.

    Of the application segments, only JFIF's and Adobe's describe colours. They are dropped if they
    are too short: Pillow reads past their end.
    """
    if 0xE0 <= marker <= 0xEF:
        jfif = marker == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= 14
        return jfif or (marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12)
    return marker != _COMMENT


def exif_orientation(exif: bytes) -> int:
    """Return the orientation in a block of Exif, a small TIFF; 1, upright, if it is damaged."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}L", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(entries):
            at = start + 2 + 12 * entry
            tag, kind, count, value = struct.unpack_from(f"{order}HHLH", exif, at)
            if tag == _ORIENTATION:
                return value if (kind, count) == (_SHORT, 1) and 1 <= value <= 8 else 1
    except struct.error:
        pass  # damaged Exif doesn't affect the pixels
    return 1
