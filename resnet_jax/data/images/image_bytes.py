"""PNG and JPEG files cut down to what their pixels need, before a decoder sees them.

Everything else in a file is left out unread: comments and texts, which may inflate to gigabytes;
colour profiles; previews and further images; Exif but for the orientation. Sizes and checksums are
compared before any pixel is decoded. Formats: PNG (W3C, third edition), JPEG (ITU-T T.81, annex B),
Exif's orientation (TIFF 6.0, tag 0x0112).
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from resnet_jax.errors import DataError

_PNG = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG's colour types
_ADAM7 = (  # first column and row of each pass, and steps between them
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)),
    (0, 1, 1, 2),
)
_INFLATE_BYTES = 2**20
_PNG_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_JPEG = b"\xff\xd8\xff"
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0 … SOF15
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a segment
_SCAN, _END, _COMMENT = 0xDA, 0xD9, 0xFE
_ORIENTATION, _SHORT = 0x0112, 3

_MAX_SCANNED_PIXELS = 10**9
"""Scans × pixels of a JPEG: a scan of a few bytes makes its decoder pass over the whole image."""


class Still(NamedTuple):
    """One image, not yet decoded."""

    format: str  # "PNG" or "JPEG"
    width: int
    height: int
    depth: int  # bits per channel
    orientation: int  # 1 … 8, as Exif counts; 1 if nothing is said
    data: bytes


def cut_down(data: bytes, *, max_pixels: int) -> Still:
    """Find the image in the bytes of a PNG or JPEG file.

    Raises:
        DataError: it isn't one, is torn or damaged, moves, or has more than `max_pixels`. The
            message begins with "it", for the caller to say what.
    """
    if not data:
        raise DataError("it is empty")
    try:
        if data.startswith(_PNG):
            return _png(data, max_pixels)
        elif data.startswith(_JPEG):
            return _jpeg(data, max_pixels)
    except (struct.error, IndexError):
        raise DataError("it ends within its header") from None
    raise DataError("it isn't a PNG or JPEG image")


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if not width or not height:
        raise DataError("it has no pixels")
    if width * height > max_pixels:
        raise DataError(f"it has {width}×{height} pixels, too many")


def _png(data: bytes, max_pixels: int) -> Still:
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
        elif not kind[0] & 0x20:  # a capital: needed to understand the rest
            raise DataError("it has a part that isn't known")
        if kind == b"IHDR":
            if header or len(body) != 13:
                raise DataError("its header isn't sound")
            header = bytes(body)
        elif kind == b"IDAT":
            packed.append(body)
        elif kind == b"eXIf":
            exif = exif or bytes(body)
        elif kind == b"acTL" and struct.unpack_from(">L", body)[0] > 1:
            raise DataError("it is animated; take one image of it")
        elif kind == b"IEND":
            break
    else:
        raise DataError("it ends too early")
    width, height, depth = struct.unpack_from(">LLB", header)
    _check_size(width, height, max_pixels)
    _check_complete(packed, header)
    return Still("PNG", width, height, depth, exif_orientation(exif), b"".join(kept))


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, memoryview]]:
    """Type, content and all of each chunk of a PNG, up to the end or a torn one."""
    at, view = len(_PNG), memoryview(data)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">L4s", data, at)
        end = at + 12 + length
        if end > len(data):
            return
        yield kind, view[at + 8 : end - 4], view[at:end]
        at = end


def _check_complete(packed: list[memoryview], header: bytes) -> None:
    """Inflate the pixels once, and drop them: Pillow takes those that aren't there for black."""
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


def _jpeg(data: bytes, max_pixels: int) -> Still:
    kept: list[bytes | memoryview] = [data[:2]]
    frame, exif, at = b"", b"", 2
    while True:
        at = data.find(b"\xff", at)  # decoders skip what stands between
        while at >= 0 and data[at + 1] == 0xFF:
            at += 1
        if at < 0:
            raise DataError("it ends too early")
        marker = data[at + 1]
        if marker == _END:
            raise DataError("it has no pixels")
        if marker == _SCAN:
            break
        if marker == 0 or marker in _ALONE:
            at += 2
            continue
        end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        if end < at + 4 or end > len(data):
            raise DataError("it ends too early")
        body = data[at + 4 : end]
        if marker in _FRAMES:
            if frame:
                raise DataError("its header isn't sound")
            frame = body
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            exif = exif or body[6:]
        if _describes_pixels(marker, body):
            kept.append(data[at:end])
        at = end
    if not frame:
        raise DataError("it begins without a header")
    depth, height, width = struct.unpack_from(">BHH", frame)
    _check_size(width, height, max_pixels)
    # Within coded pixels 0xFF is followed by 0, so that this counts scans, and those of previews.
    if data.count(b"\xff\xda", at) * width * height > _MAX_SCANNED_PIXELS:
        raise DataError("it has more scans than an image needs")
    kept.append(memoryview(data)[at:])
    return Still("JPEG", width, height, depth, exif_orientation(exif), b"".join(kept))


def _describes_pixels(marker: int, body: bytes) -> bool:
    """Whether a decoder needs the segment; of those for applications, JFIF's and Adobe's colours.

    JFIF's may have a preview, and Pillow reads the rest of a strange one with more trust than it
    deserves; what it says of colours is that it's there.
    """
    if 0xE0 <= marker <= 0xEF:
        jfif = marker == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= 14
        return jfif or (marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12)
    return marker != _COMMENT


def exif_orientation(exif: bytes) -> int:
    """The orientation in a block of Exif, a small TIFF; 1, upright, if it can't be read."""
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
        pass  # a camera's note that is damaged says nothing of the pixels
    return 1
