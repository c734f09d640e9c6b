"""Atomic replacement of files, and the limit of open files."""

import os
import resource
import stat

import pytest

from resnet_jax.errors import ConfigError
from resnet_jax.utils.files import ensure_open_files, replace_file


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


def test_as_many_files_may_be_open_as_the_system_allows(monkeypatch):
    limits = [64, 256]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.__setitem__(0, new[0]))
    ensure_open_files(50, what="It")
    assert limits == [64, 256]
    ensure_open_files(200, what="It")
    assert limits == [200, 256]
    with pytest.raises(ConfigError, match="It needs 300 open files, and a process may have 256"):
        ensure_open_files(300, what="It")
