"""Reading and atomic replacement of files, and the limit of open files."""

import errno
import os
import pwd
import resource
import stat
from pathlib import Path

import pytest

from resnet_jax.errors import ConfigError
from resnet_jax.utils.files import ensure_open_files, local_path, open_regular_file, replace_file


def test_a_home_that_nobody_knows_is_left_as_it_is(tmp_path, monkeypatch):
    """As in a container whose user has no name."""

    def unknown(*_):
        raise KeyError("no such user")

    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/x") == tmp_path / "x"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(pwd, "getpwnam", unknown)
    for name in ("~/x", "~somebody/x"):
        assert local_path(name) == Path(name)


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


@pytest.mark.parametrize("kind", ["pipe", "link", "dangling link", "link to a pipe", "folder"])
def test_only_regular_files_are_replaced(kind, tmp_path):
    path, other = tmp_path / "path", tmp_path / "other"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        if kind == "link":
            other.write_bytes(b"old")
        elif kind == "link to a pipe":
            os.mkfifo(other)
        path.symlink_to(other)
    before, names = path.lstat(), sorted(os.listdir(tmp_path))
    with pytest.raises(OSError, match="not a regular file|Is a directory") as found:
        replace_file(path, [b"new"])
    assert found.value.errno in (errno.EINVAL, errno.EISDIR)
    assert (path.lstat(), sorted(os.listdir(tmp_path))) == (before, names)
    if kind == "link":
        assert other.read_bytes() == b"old"


def test_reading_a_pipe_is_an_error_and_waits_for_no_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with open_regular_file(tmp_path / "link") as file:
        assert file.read() == b"content"
    with (
        pytest.raises(OSError, match="a pipe or a device, not a regular file"),
        open_regular_file(tmp_path / "pipe"),
    ):
        pass
    with pytest.raises(IsADirectoryError), open_regular_file(tmp_path):
        pass


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
