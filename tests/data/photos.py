"""A folder of photographs, for tests of streaming."""

import numpy as np
import pytest

from tests.data.hostile_images import pixels, save

SIZE, AREA = 12, (0.25, 1.0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes of JPEG and PNG files of many sizes."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog", "owl")):
        (root / name).mkdir()
        for number in range(20):
            kind, suffix = (("PNG", "png"), ("JPEG", "jpg"))[number % 2]
            shape = rng.integers(14, 50, 2).tolist()
            data = save(pixels(*shape, seed=100 * label + number), kind)
            (root / name / f"{number}.{suffix}").write_bytes(data)
    return root
