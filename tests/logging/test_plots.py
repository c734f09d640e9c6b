"""Pictures of a run."""

import errno
import html
import io
import os
import warnings

import matplotlib
import matplotlib.figure
import numpy as np
import pytest
from PIL import Image

from resnet_jax.errors import WriteError
from resnet_jax.logging.plots import (
    confusion_png,
    contact_sheet_png,
    draw_confusion,
    figure_text,
    new_figure,
    picture_of,
)
from resnet_jax.utils.streams import escaped


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


def test_an_old_confusion_matrix_survives_a_full_disk(tmp_path, monkeypatch):
    path = tmp_path / "confusion.png"
    path.write_bytes(b"old")

    def fill(self, file, **options):
        with open(file, "wb") if isinstance(file, str | os.PathLike) else file as opened:
            opened.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", fill)
    with pytest.raises(WriteError, match="No space left"):
        draw_confusion(path, np.diag([3, 4]), ("cat", "dog"))
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("name", ["$^^$", r"a\$b$", "$x$", "\x1b[31m", "\ud800", "\0", "a_{b}"])
def test_any_name_is_a_text_of_a_figure(name):
    """None is TeX, and none has characters that no font has."""
    figure = new_figure(2, 2)
    figure.text(0, 0, figure_text(name))
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.fonttype": "none"}):
        warnings.simplefilter("error")
        picture = picture_of(figure, "svg").decode()
        confusion_png(np.diag([3, 4]), ("cat", name))
    assert f">{escaped(name)}</text>" in html.unescape(picture)
