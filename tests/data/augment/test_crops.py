"""Random-resized crops: distribution of the boxes, and pixels for all kinds of files."""

import io
import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from resnet_jax.data.augment import crops
from resnet_jax.data.augment.crops import crop_box, crop_draws
from resnet_jax.errors import DataError
from tests.data.hostile_images import pixels, save

AREA = (0.08, 1.0)


def decode_crop(data, draws, *, area, size):
    image = np.empty((size, size, 3), np.uint8)
    crops.decode_crop(data, draws, area=area, into=image)
    return image


@settings(max_examples=100, derandomize=True)
@given(
    height=st.integers(1, 600),
    width=st.integers(1, 600),
    index=st.integers(0, 2**31),
    area=st.sampled_from([AREA, (0.35, 1.0), (1.0, 1.0)]),
)
def test_a_box_lies_within_its_image(height, width, index, area):
    box = crop_box(height, width, crop_draws(0, 3, index), area=area)
    assert 0 <= box.top <= box.top + box.height <= height
    assert 0 <= box.left <= box.left + box.width <= width
    assert min(box.height, box.width) >= 1


def test_shares_and_ratios_are_uniform():
    """In a large square, nearly all first attempts fit and show the distribution."""
    boxes = [crop_box(4000, 4000, crop_draws(0, 0, i), area=(0.1, 0.5)) for i in range(2000)]
    shares = np.array([box.height * box.width / 4000**2 for box in boxes])
    ratios = np.array([math.log(box.width / box.height) for box in boxes])
    for values, low, high in ((shares, 0.1, 0.5), (ratios, math.log(3 / 4), math.log(4 / 3))):
        assert low - 1e-3 <= values.min()
        assert values.max() <= high + 1e-3
        counts, _ = np.histogram(values, bins=8, range=(low, high))
        np.testing.assert_allclose(counts, 250, atol=5 * math.sqrt(250))
    tops = np.array([box.top / (4000 - box.height) for box in boxes])
    assert abs(tops.mean() - 0.5) < 0.03


@pytest.mark.parametrize(
    ("shape", "expected"), [((10, 1000), (10, 13)), ((1000, 10), (13, 10)), ((1, 1), (1, 1))]
)
def test_of_what_no_attempt_fits_the_centre_is_taken(shape, expected):
    box = crop_box(*shape, crop_draws(0, 0, 1), area=(1.0, 1.0))
    assert (box.height, box.width) == expected
    assert (box.top, box.left) == tuple((s - e) // 2 for s, e in zip(shape, expected, strict=True))


def test_draws_are_the_same_in_every_version_and_differ_by_example():
    draws = crop_draws(0, 0, 0)
    assert draws[0].tolist() == [
        0.34218278474233466,
        0.5765144536585864,
        0.08665198221933101,
        0.635531779794157,
    ]
    assert np.all((draws >= 0) & (draws < 1))
    several = {crop_draws(s, e, i).tobytes() for s in (0, 1) for e in (0, 1) for i in range(5)}
    assert len(several) == 20


PICTURE = pixels(40, 52, seed=1)


def _exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize(
    ("data", "image"),
    [
        (save(PICTURE, "JPEG", quality=90), None),
        (save(PICTURE, "JPEG", quality=90, progressive=True, subsampling=0), None),
        (save(Image.fromarray(PICTURE).convert("L"), "JPEG"), None),
        (save(Image.fromarray(PICTURE).convert("CMYK"), "JPEG"), None),
        (save(PICTURE), PICTURE),
        (save(PICTURE, exif=_exif(1)), PICTURE),
        (save(np.rot90(PICTURE), exif=_exif(6)), PICTURE),
    ],
    ids=["jpeg", "progressive", "grey", "cmyk", "png", "upright", "turned"],
)
def test_pixels_are_those_that_pillow_decodes(data, image):
    if image is None:
        image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    draws = crop_draws(0, 0, 7)
    box = crop_box(*image.shape[:2], draws, area=AREA)
    part = image[box.top : box.top + box.height, box.left : box.left + box.width]
    expected = cv2.resize(part, (16, 16), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(decode_crop(data, draws, area=AREA, size=16), expected)


def test_a_turned_jpeg_is_set_upright():
    """Compared to the same pixels stored upright; JPEG's blocks differ slightly."""
    draws = crop_draws(0, 0, 3)
    turned = save(np.rot90(PICTURE), "JPEG", quality=95, subsampling=0, exif=_exif(6))
    upright = save(PICTURE, "JPEG", quality=95, subsampling=0)
    one, other = (decode_crop(d, draws, area=AREA, size=24).astype(int) for d in (turned, upright))
    assert np.abs(one - other).mean() < 3


@pytest.mark.parametrize("shrink", [2, 3, 5, 9])
def test_what_is_much_too_large_is_decoded_smaller(shrink, monkeypatch):
    picture = pixels(shrink * 40, shrink * 44, seed=shrink)
    data, draws = save(picture, "JPEG", quality=95), crop_draws(0, 0, 5)
    sizes = []
    decode = crops.simplejpeg.decode_jpeg

    def spy(*args, **kwargs):
        sizes.append(decode(*args, **kwargs).shape)
        return decode(*args, **kwargs)

    monkeypatch.setattr(crops.simplejpeg, "decode_jpeg", spy)
    found = decode_crop(data, draws, area=(0.9, 1.0), size=32)
    assert sizes[0][0] <= picture.shape[0] / 2
    box = crop_box(*picture.shape[:2], draws, area=(0.9, 1.0))
    part = picture[box.top : box.top + box.height, box.left : box.left + box.width]
    expected = cv2.resize(part, (32, 32), interpolation=cv2.INTER_AREA)
    assert np.abs(found.astype(int) - expected).mean() < 4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"<html>", "isn't a PNG or JPEG"),
        (save(PICTURE, "JPEG")[:-200], "it"),
        (save(PICTURE)[:-50], "ends too early"),
    ],
)
def test_what_is_damaged_is_refused(data, message):
    with pytest.raises(DataError, match=message):
        decode_crop(data, crop_draws(0, 0, 0), area=AREA, size=16)
