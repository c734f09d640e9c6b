"""Files that are replaced as a whole."""

import os
import stat

import pytest

from resnet_jax.files import replace_file


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_the_users_umask_says_who_may_read_a_file(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        for content in (b"old", b"new"):
            replace_file(tmp_path / "file", [content])
    finally:
        os.umask(before)
    assert (tmp_path / "file").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
    assert os.listdir(tmp_path) == ["file"]
