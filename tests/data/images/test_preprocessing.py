"""Preprocessing equals torchvision's, and is stored as text with the weights."""

import decimal
import json

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from resnet_jax.data.dataset_info import IMAGENET_MEAN, IMAGENET_STD
from resnet_jax.data.images.image_files import decode_upright, read_file
from resnet_jax.data.images.preprocessing import Preprocessing, ScaleAndCrop, encode_mean_image
from resnet_jax.errors import ConfigError, DataError
from tests.data import hostile_images

IMAGENET = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, 224, 256, "bicubic", ("a cat", "Krähe"))
(KEY,) = IMAGENET.metadata()
_fractions = st.floats(2**-10, 1, width=32)
_interpolations = st.sampled_from(["bilinear", "bicubic"])


def _noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def _offset(side, size):
    """Corner of a centred crop: halves are rounded to even, in decimal arithmetic."""
    half = decimal.Decimal(side - size) / 2
    return int(half.quantize(decimal.Decimal(1), decimal.ROUND_HALF_EVEN))


@settings(max_examples=100)
@given(
    st.integers(1, 90), st.integers(1, 90), st.integers(1, 64), st.integers(1, 64), _interpolations
)
def test_an_image_of_any_size_is_scaled_and_cropped(height, width, size, resize, interpolation):
    """Pillow's operations in integer arithmetic."""
    assume(size <= resize)
    image = _noise(height, width)
    if height < width:
        scaled = (resize * width // height, resize)
    else:
        scaled = (resize, resize * height // width)
    kind = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}[interpolation]
    left, top = _offset(scaled[0], size), _offset(scaled[1], size)
    box = (left, top, left + size, top + size)
    expected = np.asarray(Image.fromarray(image).resize(scaled, kind).crop(box))
    preprocessing = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, size, resize, interpolation)
    found = preprocessing.apply(image)
    assert (found.dtype, found.shape) == (np.uint8, (size, size, 3))
    np.testing.assert_array_equal(found, expected)


def test_the_sides_of_what_a_crop_is_taken_from_have_an_order():
    lying, standing = (ScaleAndCrop((8, 8), cover) for cover in ((8, 16), (16, 8)))
    assert lying.name != standing.name


@pytest.mark.parametrize(("side", "offset"), [(32, 0), (33, 0), (34, 1), (35, 2), (37, 2), (39, 4)])
def test_halves_are_rounded_to_even(side, offset):
    """torchvision's CenterCrop uses Python's round."""
    preprocessing = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, 32)
    image = _noise(side, 33)
    np.testing.assert_array_equal(preprocessing.apply(image), image[offset : offset + 32, :32])


def test_a_photo_of_five_by_four():
    """256 / 375 × 500 is 341.3, and (341 − 224) / 2 is 58.5."""
    image = _noise(375, 500)
    scaled = np.asarray(Image.fromarray(image).resize((341, 256), Image.BICUBIC))
    np.testing.assert_array_equal(IMAGENET.apply(image), scaled[16:240, 58:282])


def test_what_shrinks_is_smoothed():
    """A chequered pattern becomes grey."""
    pattern = np.indices((400, 400)).sum(axis=0) % 2 * 255
    image = np.stack([pattern.astype(np.uint8)] * 3, axis=-1)
    for interpolation in ("bilinear", "bicubic"):
        kind = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, 40, 40, interpolation)
        assert np.abs(kind.apply(image).astype(int) - 127).max() <= 1


def test_a_crop_keeps_no_large_image_alive():
    found = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, 8).apply(_noise(300, 300))
    assert found.base is None


@pytest.mark.parametrize(
    ("shape", "resize", "message"),
    [((20, 40), None, "20×40 .*, of which 32×32 can't"), ((1, 30_000), 32, "1×30000 .*, too long")],
)
def test_what_cannot_be_cropped_is_refused(shape, resize, message):
    preprocessing = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, 32, resize)
    with pytest.raises(DataError, match=f"^it is {message}"):
        preprocessing.apply(_noise(*shape))


@settings(max_examples=20)
@given(st.tuples(*[_fractions] * 3), st.tuples(*[_fractions] * 3))
def test_normalisation_is_the_textbooks(mean, std):
    images = np.stack([_noise(4, 5), _noise(5, 4).reshape(4, 5, 3)])
    expected = (images / 255.0 - np.array(mean)) / np.array(std)
    preprocessing = Preprocessing(mean, std, 4)
    for function in (preprocessing.normalize, jax.jit(preprocessing.normalize)):
        found = function(images)
        assert found.dtype == np.float32
        error = np.abs(np.asarray(found, np.float64) - expected) * np.array(std)
        assert error.max() < 1e-6  # of values in 0…1


@given(
    st.tuples(*[_fractions] * 3),
    st.tuples(*[_fractions] * 3),
    st.integers(1, 512),
    st.none() | st.integers(512, 2048),
    _interpolations,
    st.none() | st.lists(st.text(min_size=1).filter(str.isprintable), min_size=1).map(tuple),
)
def test_what_is_kept_as_text_comes_back(mean, std, size, resize, interpolation, names):
    if names and not all(name.strip() for name in names):
        return  # refused: a name of spaces
    preprocessing = Preprocessing(mean, std, size, resize, interpolation, names)
    metadata = preprocessing.metadata()
    assert all(isinstance(text, str) for pair in metadata.items() for text in pair)
    found = Preprocessing.from_metadata({"format": "pt"} | metadata)
    assert found == preprocessing
    assert Preprocessing.from_metadata({"format": "pt"}) is None


def test_grey_images_and_mean_images_come_back():
    image = np.random.default_rng(0).uniform(0, 255, (4, 4, 1)).astype(np.float32)
    grey = Preprocessing((0.3,), (0.2,), 4, 4, mean_image=encode_mean_image(image))
    found = Preprocessing.from_metadata(grey.metadata())
    assert found == grey
    assert found.shape == (4, 4, 1)
    np.testing.assert_array_equal(found.normalization["mean"], image)
    pixels = _noise(6, 5)[..., :1]
    crop = found.apply(pixels)
    assert crop.shape == (4, 4, 1)
    expected = (crop - image) / (255 * 0.2)
    np.testing.assert_allclose(found.normalize(crop[None])[0], expected, atol=1e-5)


@pytest.mark.parametrize("mean_image", ["", "AAAA", "no base64", "ä", 5, (1, 2), "AADAfwAA" * 8])
def test_a_mean_image_that_is_none_is_refused(mean_image):
    with pytest.raises(ConfigError, match="^mean_image is .* base64 of 2×2×3 float32 values"):
        Preprocessing(IMAGENET_MEAN, IMAGENET_STD, 2, mean_image=mean_image)


def test_a_file_without_a_mean_image_is_that_of_earlier_versions():
    assert "mean_image" not in IMAGENET.metadata()[KEY]


def _note(**changes):
    fields = json.loads(IMAGENET.metadata()[KEY]) | changes
    return json.dumps({name: value for name, value in fields.items() if value is not ...})


HOSTILE = {
    "nothing": "",
    "code": "__import__('os').abort()",
    "a python literal": "{'mean': (0.5, 0.5, 0.5)}",
    "no object": "[1, 2]",
    "torn": IMAGENET.metadata()[KEY][:-5],
    "deep": "[" * 10**5 + "]" * 10**5,
    "deep within": _note().replace('"bicubic"', "[" * 10**5 + "]" * 10**5),
    "a number of 5,000 digits": _note().replace("224", "9" * 5000),
    "a name twice": _note().replace('"size": 224', '"size": 224, "size": 32'),
    "a field too many": _note().replace('"size": 224', '"size": 224, "sise": 224'),
    "a field too few": json.dumps({"mean": [0.5] * 3, "std": [0.5] * 3, "size": 32}),
    "not a number": _note(mean=[float("nan"), 0.5, 0.5]),
    "infinite": _note(std=[float("inf"), 0.5, 0.5]),
    "overflow": _note().replace("0.485", "1e999"),
    "grey levels": _note(mean=[123.675, 116.28, 103.53]),
    "negative": _note(mean=[-0.1, 0.5, 0.5]),
    "a deviation of 0": _note(std=[0, 0.5, 0.5]),
    "a mean too few": _note(mean=[0.5, 0.5]),
    "a mean for all": _note(mean=0.5),
    "means in a text": _note(mean="0.5"),
    "a mean in a text": _note(mean=["0.5", 0.5, 0.5]),
    "a mean in an object": _note(mean={"0": 0.5, "1": 0.5, "2": 0.5}),
    "true for one": _note(mean=[True, 0.5, 0.5]),
    "a million means": _note(mean=[0.5] * 10**6),
    "true for a size": _note(size=True),
    "a size of 0": _note(size=0),
    "half a pixel": _note(size=224.5),
    "a size in a text": _note(size="224"),
    "a gigantic size": _note(size=2**31, resize=2**31),
    "a gigantic resize": _note(resize=2**40),
    "a crop larger than the image": _note(resize=128),
    "an unknown interpolation": _note(interpolation="lanczos"),
    "an interpolation in a list": _note(interpolation=["bilinear"]),
    "an escape": _note(interpolation="\x1b]0;owned\x07\nfake: line"),
    "names in a text": _note(class_names="cat"),
    "no names": _note(class_names=[]),
    "a number as a name": _note(class_names=["cat", 3]),
    "an empty name": _note(class_names=["cat", ""]),
    "a name of two lines": _note(class_names=["cat\ndog"]),
    "a name that steers a terminal": _note(class_names=["\x1b[2Jcat"]),
    "half a character": _note(class_names=["\ud800"]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_or_hostile_note_is_refused_in_a_line(name):
    with pytest.raises(DataError, match=r"^its note on preprocessing is (damaged|wrong)") as caught:
        Preprocessing.from_metadata({KEY: HOSTILE[name]})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_a_note_from_the_hand_of_another_is_read():
    """Integers in place of fractions."""
    note = _note(mean=[0, 0, 0], std=[1, 1, 1], class_names=None)
    expected = Preprocessing((0.0,) * 3, (1.0,) * 3, 224, 256, "bicubic")
    assert Preprocessing.from_metadata({KEY: note}) == expected


def test_python_is_told_of_the_same_mistakes():
    with pytest.raises(ConfigError, match="not grey levels"):
        Preprocessing((123.675, 116.28, 103.53), IMAGENET_STD, 224)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "1", "P"])
def test_files_of_other_modes_come_as_rgb_at_their_size(mode, tmp_path):
    image = Image.fromarray(_noise(30, 50)).convert(mode)
    path = tmp_path / f"image.{'jpg' if mode == 'CMYK' else 'png'}"
    image.save(path)
    expected = np.asarray(Image.open(path).convert("RGB"))
    np.testing.assert_array_equal(decode_upright(read_file(path)), expected)


def test_a_photo_is_set_upright_and_decoded_whole(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(_noise(300, 500)).save(tmp_path / "photo.jpg", exif=exif)
    expected = np.asarray(Image.open(tmp_path / "photo.jpg").transpose(Image.ROTATE_270))
    np.testing.assert_array_equal(decode_upright(read_file(tmp_path / "photo.jpg")), expected)


@pytest.mark.parametrize("name", hostile_images.HOSTILE)
def test_a_hostile_file_is_refused(name, tmp_path):
    content, message = hostile_images.HOSTILE[name]
    (tmp_path / "a.png").write_bytes(content())
    with pytest.raises(DataError, match=message) as caught:
        decode_upright(read_file(tmp_path / "a.png"))
    assert str(caught.value).startswith("it")
