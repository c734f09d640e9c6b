"""Pictures of a run."""

import io

import numpy as np
from PIL import Image

from resnet_jax.logging.plots import confusion_png, contact_sheet_png


def test_a_contact_sheet_shows_every_image_enlarged_by_a_whole_factor():
    images = np.random.default_rng(0).integers(0, 255, (10, 8, 8, 3), np.uint8)
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet_png(images))))
    assert sheet.shape == (2 * 98 + 2, 8 * 98 + 2, 3)  # 8 pixels × 12, and 2 between
    for number, image in enumerate(images):
        top, left = 2 + number // 8 * 98, 2 + number % 8 * 98
        np.testing.assert_array_equal(sheet[top : top + 96 : 12, left : left + 96 : 12], image)
        np.testing.assert_array_equal(sheet[top + 11 : top + 96 : 12, left + 11], image[:, 0])
    assert (sheet[100:, 2 * 98 + 2 :] == 255).all()


def test_a_contact_sheet_of_large_grey_images_keeps_their_size():
    images = np.full((2, 120, 100, 1), 7, np.uint8)
    sheet = Image.open(io.BytesIO(contact_sheet_png(images)))
    assert (sheet.mode, sheet.size) == ("L", (2 * 102 + 2, 124))


def test_a_confusion_matrix_is_a_picture():
    png = confusion_png(np.diag([3, 4]), ("cat", "dog"))
    assert Image.open(io.BytesIO(png)).format == "PNG"
