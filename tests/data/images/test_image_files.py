"""Every file gives the right image or one clear error, with little memory and time."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from resnet_jax.data.images.image_files import decode_image
from resnet_jax.errors import DataError
from tests.data import hostile_images as make
from tests.data.hostile_images import HOSTILE, RIGHT, fitted, pixels, read_image, save
from tests.data.tiny_dataset import encode, pixels_of

ROOT = Path(__file__).parents[3]


def _refusal(path, shape=(8, 8, 3), *, resize=True):
    with pytest.raises(DataError) as caught:
        read_image(path, shape, resize=resize)
    error = str(caught.value)
    assert error.startswith((f"{path} can't be read: ", f"{path} can't be used: "))
    assert error.isprintable()
    assert len(error) < len(str(path)) + 150
    return error


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.filterwarnings("error")
def test_unreadable_files_are_refused_in_one_line(name, tmp_path):
    content, message = HOSTILE[name]
    path = tmp_path / "image.jpg"
    path.write_bytes(content())
    with pytest.raises(DataError, match=message):
        read_image(path, (8, 8, 3), resize=True)
    _refusal(path)
    with pytest.raises(DataError, match="^it"):
        decode_image(path.read_bytes(), (8, 8, 3))


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.filterwarnings("error")
def test_unusual_files_give_the_right_image(name, tmp_path):
    """The result equals that of the file without the unusual part."""
    path = tmp_path / "image.dat"
    path.write_bytes(RIGHT[name]())
    found = read_image(path, (8, 8, 3), resize=True)
    if name.startswith("largest"):
        assert not found.any()
        return
    kind = "png" if path.read_bytes().startswith(b"\x89PNG") else "jpeg"
    plain = Image.open(io.BytesIO(RIGHT["progressive" if name == "progressive" else kind]()))
    np.testing.assert_array_equal(found, fitted(plain, 8, 8))
    at_size = decode_image(path.read_bytes(), (40, 60, 3))
    np.testing.assert_array_equal(at_size, np.asarray(plain))


@pytest.mark.thorough
@pytest.mark.parametrize("reader", ["predict", "prepared"])
def test_all_files_take_little_memory_and_time(reader, tmp_path):
    contents = {name: content for name, (content, _) in HOSTILE.items()} | RIGHT
    paths = []
    for number, content in enumerate(contents.values()):
        paths.append(tmp_path / f"{number}.png")
        paths[-1].write_bytes(content())
    done = subprocess.run(
        [sys.executable, "-m", "tests.data.read_hostile", reader, *paths],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    results = dict(zip(contents, json.loads(done.stdout), strict=True))
    assert sum(result["mib"] for result in results.values()) < 300  # a progressive JPEG's 25 MP
    assert max(results.values(), key=lambda result: result["cpu_s"])["cpu_s"] < 2
    assert not [result["warnings"] for result in results.values() if result["warnings"]]
    if reader == "predict":
        read = {name for name, result in results.items() if result["outcome"] == "(8, 8, 3)"}
        assert read == set(RIGHT)


# --- not regular files ----------------------------------------------------------------------------


def test_a_folder_a_pipe_and_a_device_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        assert "it isn't a file" in _refusal(path)
    assert "No such file" in _refusal(tmp_path / "none.png")


def test_a_file_without_end_is_refused(tmp_path):
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.write(save(pixels()))
        file.truncate(2**40)  # a sparse file, which takes no space on disk
    assert "more than 32 MiB" in _refusal(path)


# --- modes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_photo_is_set_upright(kind, order, orientation, tmp_path):
    """As Pillow does it. Images of prepared sets are decoded as stored."""
    data = save(pixels(16, 24), kind)
    exif = make.exif(orientation, order)
    part = make.chunk(b"eXIf", exif) if kind == "PNG" else make.segment(0xE1, b"Exif\0\0" + exif)
    data = make.insert(data, part)
    path = tmp_path / "photo"
    path.write_bytes(data)
    upright = ImageOps.exif_transpose(Image.open(path))
    expected = np.asarray(upright)
    np.testing.assert_array_equal(read_image(path, expected.shape, resize=False), expected)
    if orientation >= 5:
        message = "it is 24×16 (height×width), not 16×24; --resize makes images fit"
        assert message in _refusal(path, (16, 24, 3), resize=False)
    np.testing.assert_array_equal(read_image(path, (8, 6, 3)), fitted(upright, 8, 6))
    np.testing.assert_array_equal(decode_image(data, (16, 24, 3)), np.asarray(Image.open(path)))


@pytest.mark.parametrize("cut", range(0, 32, 3))
def test_a_damaged_orientation_is_ignored(cut, tmp_path):
    path = tmp_path / "photo.jpg"
    exif = b"Exif\0\0" + make.exif(6)[:cut]
    path.write_bytes(make.insert(save(pixels(), "JPEG"), make.segment(0xE1, exif)))
    found = read_image(path, resize=False)
    np.testing.assert_array_equal(found, np.asarray(Image.open(io.BytesIO(save(pixels(), "JPEG")))))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_modes_are_converted_as_pillow_does_if_that_is_wanted(kind, mode, channels, tmp_path):
    if mode in {"JPEG": ("1", "P", "LA", "RGBA"), "PNG": ("CMYK",)}[kind]:
        pytest.skip("there is no such file")
    path = tmp_path / "image"
    path.write_bytes(save(Image.fromarray(pixels()).convert(mode), kind))
    opened = Image.open(path)
    target = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    expected = np.asarray(opened.convert(target)).reshape(8, 8, channels)
    found = read_image(path, (8, 8, channels), resize=True)
    np.testing.assert_array_equal(found, expected)
    if opened.mode != target:
        assert "--resize makes images fit" in _refusal(path, (8, 8, channels), resize=False)
        with pytest.raises(DataError, match="^it is"):
            decode_image(path.read_bytes(), (8, 8, channels))


def test_an_extension_says_nothing(tmp_path):
    for kind, suffix in (("PNG", ".jpg"), ("JPEG", ".png"), ("PNG", ".svg"), ("JPEG", "")):
        path = tmp_path / f"image{suffix}"
        path.write_bytes(save(pixels(), kind))
        np.testing.assert_array_equal(read_image(path, resize=False), np.asarray(Image.open(path)))


def _interlaced(color, depth, width, height):
    """Rows of a PNG in seven passes, of noise."""
    bits = depth * {0: 1, 2: 3, 4: 2, 6: 4}[color]
    rng, rows = np.random.default_rng(0), b""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
    for x, y, step_x, step_y in [*passes, (0, 1, 1, 2)]:
        columns = len(range(x, width, step_x))
        for _ in range(y, height if columns else y, step_y):
            rows += b"\0" + rng.bytes((columns * bits + 7) // 8)
    return rows


@pytest.mark.parametrize("color", [0, 2, 4, 6])
@pytest.mark.parametrize("size", [(8, 8), (1, 1), (3, 5), (9, 2), (1, 7)])
def test_interlaced_images_are_read_whole_or_not_at_all(color, size, tmp_path):
    width, height = size
    rows = _interlaced(color, 8, width, height)
    path = tmp_path / "image.png"
    for content, fails in ((rows, False), (rows[:-1], True)):
        data = bytearray(make.png(width, height, color=color, data=content))
        data[8:33] = make.chunk(b"IHDR", bytes(data[16:28]) + b"\1")
        path.write_bytes(data)
        if fails:
            assert "its pixels end too early" in _refusal(path)
        else:
            mode = {0: 1, 2: 3, 4: 4, 6: 4}[color]
            found = read_image(path, (height, width, mode), resize=True)
            target = {1: "L", 3: "RGB", 4: "RGBA"}[mode]
            expected = np.asarray(Image.open(path).convert(target)).reshape(found.shape)
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_no_shorter_file_gives_another_image(kind, tmp_path):
    """Only the end marker of a JPEG may be missing."""
    data = save(pixels(16, 16), kind)
    whole = decode_image(data, (16, 16, 3))
    for length in range(len(data)):
        try:
            part = decode_image(data[:length], (16, 16, 3))
        except DataError:
            continue
        assert (kind, length >= len(data) - 4) == ("JPEG", True)
        np.testing.assert_array_equal(part, whole)


# --- prepared images ------------------------------------------------------------------------------


def damaged_image(kind):
    good = pixels_of("train", 4)
    grey = good[..., 0]
    return {
        "truncated": encode(good)[:-40],
        "not an image": b"<html>404</html>",
        "empty": b"",
        "palette": encode_mode(good, "P"),
        "alpha": encode_mode(good, "RGBA"),
        "grey": encode(grey),
        "16 bits": encode(grey.astype(np.uint16) * 257),
        "another size": encode(np.zeros((5, 4, 3), np.uint8)),
        "another format": encode(good, "BMP"),
    }[kind]


def encode_mode(pixels, mode):
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format="PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "kind",
    [
        *("truncated", "not an image", "empty", "palette", "alpha", "grey", "16 bits"),
        *("another size", "another format"),
    ],
)
def test_prepared_images_of_another_kind_are_refused(kind):
    with pytest.raises(DataError, match="^it "):
        decode_image(damaged_image(kind), (4, 5, 3))


def test_sixteen_bit_colour_is_not_cut_to_eight():
    import struct
    import zlib

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + bytes(range(30)) for _ in range(4)))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    assert Image.open(io.BytesIO(png)).mode == "RGB"  # Pillow would silently reduce it to 8 bits
    with pytest.raises(DataError, match="16 bits"):
        decode_image(png, (4, 5, 3))


def test_jpeg_and_grey_are_decoded_as_pillow_does():
    jpeg = encode(pixels_of("train", 0), "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(jpeg)))
    np.testing.assert_array_equal(decode_image(jpeg, (4, 5, 3)), expected)
    grey = pixels_of("train", 1)[..., :1]
    np.testing.assert_array_equal(decode_image(encode(grey[..., 0]), (4, 5, 1)), grey)
