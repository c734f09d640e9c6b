"""Images: mutated PNG and JPEG files, through both doors."""

import io
import random
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from resnet_jax.data.images.image_files import decode_image
from resnet_jax.errors import DataError
from tests.data import hostile_images as make
from tests.faults import mutate

SHAPE = (8, 8, 3)


def originals() -> list[bytes]:
    """A sound file of each kind."""
    image = Image.fromarray(make.pixels())
    files = [make.save(image.convert(m)) for m in ("RGB", "L", "P", "RGBA", "LA", "1")]
    files += [make.save(image.convert(m), "JPEG") for m in ("RGB", "L", "CMYK")]
    files += [make.save(image, "JPEG", progressive=True), make.animated()]
    files.append(make.png(8, 8, depth=16, data=(b"\0" + bytes(range(48))) * 8))
    interlaced = bytearray(make.png(8, 8, color=0, data=bytes(64 + 15)))
    interlaced[8:33] = make.chunk(b"IHDR", bytes(interlaced[16:28]) + b"\1")
    files.append(bytes(interlaced))
    photo = make.save(image, "JPEG")
    files.append(make.insert(photo, make.segment(0xE1, b"Exif\0\0" + make.exif(6))))
    files.append(make.insert(make.save(image), make.texts(b"zTXt", 2, 100)))
    files.append(make.insert(photo, make.segment(0xE2, b"MPF\0II*\0\x08\0\0\0\0\0")))
    return files


def structured(data: bytes, rng: random.Random) -> bytes:
    """Another content of one part of a PNG, whose length and checksum are right."""
    if not data.startswith(b"\x89PNG"):
        return mutate.raw(data, rng)
    parts, at = [], 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">L4s", data, at)
        parts.append((kind, data[at + 8 : at + 8 + length]))
        at += 12 + length
    number = rng.randrange(len(parts))
    kind, body = parts[number]
    if kind == b"IDAT" and rng.random() < 0.5:
        body = zlib.compress(mutate.raw(zlib.decompress(body), rng))
    else:
        body = mutate.raw(body, rng)
    if rng.random() < 0.1:
        kind = rng.choice((b"IDAT", b"PLTE", b"tRNS", b"IEND", b"IHDR", b"acTL", b"fdAT", b"eXIf"))
    parts[number] = (kind, body)
    if rng.random() < 0.2:
        parts.insert(rng.randrange(len(parts)), rng.choice(parts))
    return data[:8] + b"".join(make.chunk(*part) for part in parts)


def main(record: mutate.Record, cases: int, folder: Path) -> dict[str, object]:
    """Read each case as a file for predict and as the bytes of a prepared example."""
    files, path, warned = originals(), folder / "image.jpg", []
    warnings.showwarning = lambda message, *_: warned.append(str(message))
    taken = compared = 0
    for case in range(cases):
        rng = random.Random(f"image {case}")
        change = structured if rng.random() < 0.5 else mutate.raw
        data = change(files[case % len(files)], rng)
        path.write_bytes(data)
        warnings.simplefilter("always")
        with record.case(case):
            image = make.read_image(path, SHAPE, resize=bool(case % 3))
            assert (image.shape, image.dtype) == (SHAPE, np.uint8)
        try:
            image = decode_image(data, SHAPE)
        except DataError as error:
            if "\n" in str(error):
                record.wrong.append(f"case {case}: {error}")
        else:
            taken += 1
            warnings.simplefilter("ignore")
            try:  # what is taken is what the library sees in the whole file, if it takes it
                expected = np.asarray(Image.open(io.BytesIO(data)))
            except Exception:
                continue
            compared += 1
            if not np.array_equal(image, expected):
                record.wrong.append(f"case {case}: Pillow sees another image")
    return {
        "taken": taken,
        "compared": compared,
        "warnings": warned[:5],
    }
