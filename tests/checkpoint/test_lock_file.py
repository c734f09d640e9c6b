"""A lock is taken by one process at a time, on file systems of every kind."""

import concurrent.futures
import contextlib
import errno
import json
import os
import random
import time

import pytest
from etils import epath

from resnet_jax.checkpoint.lock import LOCK, locked
from resnet_jax.checkpoint.lock_file import acquire
from resnet_jax.checkpoint.lock_holder import this_process
from resnet_jax.errors import WriteError
from tests.checkpoint.locks import ANOTHER, DEAD, ELSEWHERE, token_of, write_lock


@pytest.mark.parametrize("clock", [0, -10, 60])
def test_of_many_that_find_a_dead_ones_lock_one_gets_it(clock, tmp_path, monkeypatch):
    """For any clock of the file system; here it is off by `clock` seconds."""
    link = os.link

    def by_its_clock(source, path):
        link(source, path)
        with contextlib.suppress(FileNotFoundError):
            os.utime(path, (time.time() + clock, time.time() + clock))

    monkeypatch.setattr(os, "link", by_its_clock)
    for _ in range(10):
        write_lock(tmp_path / LOCK, DEAD)

        def take(_):
            try:
                return acquire(epath.Path(tmp_path / LOCK), this_process(), stale_s=60.0)
            except WriteError as error:
                return error

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            assert list(pool.map(take, range(8))).count(None) == 1
        (tmp_path / LOCK).unlink()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.thorough
def test_no_two_hold_it_at_once(tmp_path, monkeypatch):
    """On a slow file system, so that processes interleave between two calls."""
    link, fsync = os.link, os.fsync

    def slow_link(source, path):
        try:
            link(source, path)
        except FileExistsError:
            time.sleep(random.random() * 0.02)
            raise

    def slow_fsync(handle):
        fsync(handle)
        time.sleep(random.random() * 0.005)

    monkeypatch.setattr(os, "link", slow_link)
    monkeypatch.setattr(os, "fsync", slow_fsync)
    inside, most = [], []
    began = time.monotonic()

    def run(number):
        while (passed_s := time.monotonic() - began) < 3.0 or (len(most) <= 30 and passed_s < 300):
            with contextlib.suppress(WriteError), locked(epath.Path(tmp_path)):
                inside.append(number)
                time.sleep(random.random() * 0.02)
                most.append(len(inside))
                inside.remove(number)

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        list(pool.map(run, range(6)))
    assert len(most) > 30
    assert max(most) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("hurried")
def test_who_dies_while_it_takes_over_makes_way(tmp_path):
    write_lock(tmp_path / LOCK, DEAD)
    turn = tmp_path / f"{LOCK}.takeover"
    write_lock(turn, ELSEWHERE)
    ahead = time.time() + 3600
    os.utime(turn, (ahead, ahead))
    began = time.monotonic()
    with locked(epath.Path(tmp_path)):
        assert time.monotonic() - began >= 0.3
    assert list(tmp_path.iterdir()) == []


def test_who_takes_over_at_the_same_time_and_later_has_it(tmp_path, monkeypatch):
    """A process that was suspended during its takeover may resume and write last."""
    write_lock(tmp_path / LOCK, DEAD)
    replace = os.replace

    def both(source, path):
        replace(source, path)
        if os.fspath(path) == str(tmp_path / LOCK):
            write_lock(tmp_path / LOCK, ANOTHER)

    monkeypatch.setattr(os, "replace", both)
    with pytest.raises(WriteError, match="in use"), locked(epath.Path(tmp_path)):
        pass
    assert token_of(tmp_path / LOCK) == "another"


def test_a_request_that_nfs_sent_twice(tmp_path, monkeypatch):
    """The first request has created the file, but the reply was lost."""
    link = os.link

    def twice(source, path):
        link(source, path)
        link(source, path)

    monkeypatch.setattr(os, "link", twice)
    with locked(epath.Path(tmp_path)):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
@pytest.mark.usefixtures("hurried")
def test_a_file_system_without_hard_links(number, tmp_path, monkeypatch):
    def link(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    for before in ({}, DEAD):
        if before:
            write_lock(tmp_path / LOCK, before)
        with locked(epath.Path(tmp_path)):
            message = f"in use by process {os.getpid()} on"
            with pytest.raises(WriteError, match=message), locked(epath.Path(tmp_path)):
                pass
        assert list(tmp_path.iterdir()) == []


def test_a_lock_that_cannot_be_made(tmp_path, monkeypatch):
    def link(*_):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "link", link)
    message = r"\.lock can't be read or written \(Disk quota exceeded\)"
    with pytest.raises(WriteError, match=message), locked(epath.Path(tmp_path)):
        pass
    assert list(tmp_path.iterdir()) == []
