"""Hostile, damaged and unusual image files, built byte by byte."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from resnet_jax.cli import classify
from resnet_jax.data.images.fit import Fit
from resnet_jax.data.images.preprocessing import ScaleAndCrop

SVG = b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg' width='8' height='8'/>"
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(/etc/passwd) (r) file\n%%EOF\n"


def pixels(height: int = 8, width: int = 8, seed: int = 0) -> np.ndarray:
    """A smooth picture, uint8 [h, w, 3], that survives JPEG nearly unchanged."""
    rng = np.random.default_rng(seed)
    corners = Image.fromarray(rng.integers(0, 256, (3, 3, 3), np.uint8))
    return np.asarray(corners.resize((width, height), Image.Resampling.BICUBIC))


def fitted(image: Image.Image, height: int, width: int) -> np.ndarray:
    """Scale to cover height × width, and crop at the centre, with Pillow alone."""
    factor = max(height / image.height, width / image.width)
    sides = (max(width, int(image.width * factor)), max(height, int(image.height * factor)))
    scaled = image.resize(sides, Image.Resampling.BILINEAR)
    left, top = round((sides[0] - width) / 2), round((sides[1] - height) / 2)
    part = np.asarray(scaled.crop((left, top, left + width, top + height)))
    return part if part.ndim == 3 else part[..., None]


def read_image(
    path: Path, shape: tuple[int, int, int] = (8, 8, 3), *, resize: bool = True
) -> np.ndarray:
    """Read an image as `resnet-jax predict` does for a network with inputs of `shape`."""
    crop = ScaleAndCrop(shape[:2], shape[:2]) if resize else None
    return classify.read_image(
        path, Fit(shape, crop, convert=resize), remedy="--resize makes images fit"
    )


def save(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """Return the content of the file that Pillow writes."""
    file = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))


def png(width: int, height: int, *, depth: int = 8, color: int = 2, data: bytes = b"") -> bytes:
    """Return a PNG with this header and the uncompressed pixels `data`."""
    header = struct.pack(">LLBBBBB", width, height, depth, color, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def blank_png(width: int, height: int, *, color: int = 2) -> bytes:
    """Return a valid PNG of zeros, a small file."""
    row = bytes(1 + width * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color])
    deflate = zlib.compressobj(1)
    body = b"".join(deflate.compress(row) for _ in range(height)) + deflate.flush()
    header = struct.pack(">LLBBBBB", width, height, 8, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + (
        chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def insert(data: bytes, parts: bytes) -> bytes:
    """Insert chunks after the header of a PNG, or segments after the first marker of a JPEG."""
    at = 33 if data.startswith(b"\x89PNG") else 2
    return data[:at] + parts + data[at:]


def flip(data: bytes, at: int) -> bytes:
    """Flip one bit of byte `at`."""
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def segment(marker: int, body: bytes) -> bytes:
    """Return a segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def zeros(size: int) -> bytes:
    """Return `size` zeros, compressed in blocks of 10⁷; without a checksum at the end."""
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    piece = min(size, 10**7)
    block = deflate.compress(bytes(piece)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return b"\x78\x9c" + block * (size // piece) + deflate.flush()


def texts(kind: bytes, count: int, size: int) -> bytes:
    """Return PNG chunks with `size` bytes of compressed text each."""
    packed = zeros(size)
    start = b"k%d\0\0" if kind == b"zTXt" else b"k%d\0\1\0\0\0"
    return b"".join(chunk(kind, start % i + packed) for i in range(count))


def with_size(data: bytes, width: int, height: int) -> bytes:
    """Change the size in the header of a JPEG."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def many_scans(width: int, height: int, scans: int) -> bytes:
    """Return a progressive JPEG whose last scan is repeated."""
    good = save(Image.new("RGB", (width, height)), "JPEG", progressive=True)
    last = good.rindex(b"\xff\xda")
    return good[:-2] + good[last:-2] * scans + good[-2:]


def exif(orientation: int, order: str = "<") -> bytes:
    """Return a block of Exif."""
    start = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(f"{order}HHLHH", 0x0112, 3, 1, orientation, 0)
    other = struct.pack(f"{order}HHLL", 0x0100, 4, 1, 8)
    return start + struct.pack(f"{order}LH", 8, 2) + other + entry + struct.pack(f"{order}L", 0)


def endless_exif() -> bytes:
    """Return Exif with thousands of entries, each longer than the block."""
    entries = b"".join(struct.pack("<HHLL", 256 + i, 7, 2**31, 8) for i in range(5000))
    return b"Exif\0\0II*\0" + struct.pack("<LH", 8, 5000) + entries


def animated() -> bytes:
    """Return an animated PNG of three frames."""
    frames = [Image.fromarray(pixels(seed=seed)) for seed in range(3)]
    return save(frames[0], save_all=True, append_images=frames[1:])


def _photo(kind: str = "JPEG", mode: str = "RGB", **options: object) -> bytes:
    return save(Image.fromarray(pixels(40, 60)).convert(mode), kind, **options)


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "it is empty"),
    "text": (lambda: b"<html>404</html>", "isn't a PNG or JPEG"),
    "svg": (lambda: SVG, "isn't a PNG or JPEG"),
    "eps": (lambda: EPS, "isn't a PNG or JPEG"),
    "gif": (lambda: _photo("GIF", "P"), "isn't a PNG or JPEG"),
    "tiff": (lambda: _photo("TIFF"), "isn't a PNG or JPEG"),
    "signature alone": (lambda: b"\x89PNG\r\n\x1a\n", "ends"),
    "marker alone": (lambda: b"\xff\xd8\xff", "ends"),
    "torn png": (lambda: _photo("PNG")[:-40], "ends too early"),
    "torn jpeg": (lambda: _photo()[:-100], "truncated"),
    "png header of 12000": (lambda: png(12000, 12000), "12000×12000 pixels, too many"),
    "png header of 14000": (lambda: png(14000, 14000), "14000×14000 pixels, too many"),
    "png header of 2**31": (lambda: png(2**31 - 1, 2**31 - 1), "pixels, too many"),
    "jpeg header of 12000": (lambda: with_size(_photo(), 12000, 12000), "12000×12000 pixels, too"),
    "jpeg header of 14000": (lambda: with_size(_photo(), 14000, 14000), "14000×14000 pixels, too"),
    "jpeg header of 0": (lambda: with_size(_photo(), 0, 40), "no pixels"),
    "all of 12000": (lambda: blank_png(12000, 12000, color=0), "12000×12000 pixels, too many"),
    "transparent 5000": (lambda: blank_png(5000, 5000, color=6), "too many in RGBA"),
    "scans": (lambda: many_scans(4900, 4900, 5000), "more scans than an image needs"),
    "16 bits grey": (
        lambda: save(np.full((8, 8), 1000, np.uint16)),
        "16 bits per channel, not 8",
    ),
    "16 bits colour": (
        lambda: png(8, 8, depth=16, data=(b"\0" + bytes(range(48))) * 8),
        "16 bits per channel, not 8",
    ),
    "12 bits": (
        lambda: _photo().replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
        "12 bits|header isn't sound",
    ),
    "animated": (animated, "animated"),
    "a flipped bit": (
        lambda: flip(_photo("PNG"), 60),
        "fails its checksum",
    ),
    "critical part": (lambda: insert(_photo("PNG"), chunk(b"ABCD", b"x")), "isn't known"),
    "two headers": (
        lambda: insert(_photo("PNG"), _photo("PNG")[8:33]),
        "header isn't sound",
    ),
    "pixels end early": (lambda: png(8, 8, data=bytes(50)), "pixels end too early"),
    "lossless jpeg": (lambda: _photo().replace(b"\xff\xc0", b"\xff\xc3", 1), "isn't sound|damaged"),
}
"""Name → a function that makes the file, and the error of `read_image` with `resize=True`."""

RIGHT: dict[str, Callable[[], bytes]] = {
    "png": lambda: _photo("PNG"),
    "jpeg": _photo,
    "progressive": lambda: _photo(progressive=True),
    "1,000 texts": lambda: insert(_photo("PNG"), texts(b"zTXt", 1000, 10**6)),
    "text of 1 GB": lambda: insert(_photo("PNG"), texts(b"zTXt", 1, 10**9)),
    "international text of 1 GB": lambda: insert(_photo("PNG"), texts(b"iTXt", 1, 10**9)),
    "profile of 1 GB": lambda: insert(_photo("PNG"), chunk(b"iCCP", b"p\0\0" + zeros(10**9))),
    "endless exif": lambda: insert(_photo(), segment(0xE1, endless_exif())),
    "endless exif in png": lambda: insert(_photo("PNG"), chunk(b"eXIf", endless_exif()[6:])),
    "torn index of images": lambda: insert(_photo(), segment(0xE2, b"MPF\0II*\0\0\0\0\0")),
    "short jfif": lambda: insert(_photo(), segment(0xE0, b"JFIF\0\1")),
    "short adobe": lambda: insert(_photo(), segment(0xEE, b"Adobe\0d")),
    "largest photo": lambda: save(Image.new("RGB", (5000, 5000)), "JPEG"),
    "largest progressive photo": lambda: save(
        Image.new("RGB", (5000, 5000)), "JPEG", progressive=True, subsampling=0
    ),
    "largest png": lambda: blank_png(5000, 5000),
    "largest grey png": lambda: blank_png(5000, 5000, color=0),
}
"""Name → a function that makes the file; `read_image` with `resize=True` gives an image."""
