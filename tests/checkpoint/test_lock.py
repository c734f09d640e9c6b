"""One run at a time in a directory; a dead holder's lock is taken over."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from etils import epath

import resnet_jax
from resnet_jax.checkpoint import lock
from resnet_jax.checkpoint.lock import LOCK, locked, release_all
from resnet_jax.errors import ConfigError, PeerError, WriteError
from resnet_jax.train import opening
from tests.checkpoint.locks import DEAD, ELSEWHERE, token_of, write_lock
from tests.fake_bucket import BucketFileSystem, ClientError

HOLD = (
    "import sys, time; from etils import epath; from resnet_jax.checkpoint.lock import locked\n"
    "with locked(epath.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
)

IN_ANOTHER_CONTAINER = {"here": "another container", **DEAD}
OF_THE_SAME_NAME = {"here": "another host"}


def _hold(workdir, program=HOLD) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(workdir)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _wait_for(happened) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_second_run_is_refused_and_says_whose_the_directory_is(tmp_path):
    process = _hold(tmp_path)
    try:
        message = f"in use by process {process.pid} on {os.uname().nodename}, since 20"
        with pytest.raises(WriteError, match=message), locked(epath.Path(tmp_path)):
            pass
    finally:
        process.kill()
        process.wait()
    began = time.monotonic()
    with locked(epath.Path(tmp_path)):  # its holder is dead
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert time.monotonic() - began < 30  # a living holder is waited for thrice as long
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_is_not_waited_for_is_dead(tmp_path):
    process = _hold(tmp_path)
    process.kill()
    # A zombie until its parent waits for it; its other threads may end a moment later.
    threads = Path(f"/proc/{process.pid}/task")
    _wait_for(lambda: _state(process.pid) == "Z" and len(list(threads.iterdir())) == 1)
    with locked(epath.Path(tmp_path)):
        pass
    process.wait()


def test_a_holder_of_which_a_thread_lives_is_not_dead(tmp_path):
    """A process that was killed while a thread waits for a file system may still write."""
    program = (
        "import ctypes, sys, threading, time; from etils import epath\n"
        "from resnet_jax.checkpoint.lock import locked\n"
        "held = locked(epath.Path(sys.argv[1])); held.__enter__(); print('held', flush=True)\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "ctypes.CDLL(None).pthread_exit(None)"
    )
    process = _hold(tmp_path, program)
    _wait_for(lambda: _state(process.pid) == "Z")
    with pytest.raises(WriteError, match="in use"), locked(epath.Path(tmp_path)):
        pass
    process.kill()
    process.wait()
    with locked(epath.Path(tmp_path)):
        pass


@pytest.mark.parametrize(
    ("change", "free"),
    [
        ({"started": "1"}, True),  # another process has the pid now
        (DEAD, True),
        ({}, False),
    ],
)
def test_who_holds_it(change, free, tmp_path):
    write_lock(tmp_path / LOCK, change)
    if free:
        with locked(epath.Path(tmp_path)):
            pass
    else:
        with pytest.raises(WriteError, match="in use"), locked(epath.Path(tmp_path)):
            pass


@pytest.mark.thorough
@pytest.mark.parametrize("change", [ELSEWHERE, IN_ANOTHER_CONTAINER, OF_THE_SAME_NAME])
@pytest.mark.usefixtures("hurried")
def test_a_holder_that_cannot_be_seen_is_waited_for(change, tmp_path):
    """It is alive if it renews its lock, whatever its clock says."""
    path = tmp_path / LOCK
    write_lock(path, change)
    ended = threading.Event()

    def renew():
        while not ended.wait(0.15):
            path.touch()

    renewing = threading.Thread(target=renew)
    renewing.start()
    with pytest.raises(WriteError, match="in use"), locked(epath.Path(tmp_path)):
        pass
    ended.set()
    renewing.join()
    for clock in (-3600, 60):
        write_lock(path, change)
        os.utime(path, (time.time() + clock, time.time() + clock))
        began = time.monotonic()
        with locked(epath.Path(tmp_path)):
            assert time.monotonic() - began >= 0.8


@pytest.mark.usefixtures("hurried")
def test_a_file_system_that_does_not_answer_is_not_a_dead_holder(tmp_path, monkeypatch):
    """Meanwhile nobody can renew; the holder renews as soon as the file system answers."""
    path = tmp_path / LOCK
    write_lock(path, ELSEWHERE)
    sleep, polls = time.sleep, []

    def away(seconds):
        polls.append(seconds)
        sleep(1.0 if len(polls) == 1 else seconds)  # longer than it takes to be stale
        if len(polls) == 4:
            path.touch()

    monkeypatch.setattr(time, "sleep", away)
    with pytest.raises(WriteError, match="in use"), locked(epath.Path(tmp_path)):
        pass
    assert len(polls) == 4


@pytest.mark.usefixtures("hurried")
def test_a_holder_elsewhere_that_ends_meanwhile_makes_way(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_STALE_S", 60.0)
    write_lock(tmp_path / LOCK, ELSEWHERE)
    threading.Timer(0.2, (tmp_path / LOCK).unlink).start()
    began = time.monotonic()
    with locked(epath.Path(tmp_path)):
        assert time.monotonic() - began < 30


def test_who_ends_at_once_gives_up_its_lock_first(tmp_path):
    program = (
        "import sys; from etils import epath; from resnet_jax.checkpoint.lock import locked\n"
        "from resnet_jax.cli.common.exits import end_with\n"
        "with locked(epath.Path(sys.argv[1])): end_with('Process 1 has ended.')"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert done.returncode == 71
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("hurried")
def test_a_held_lock_is_renewed(tmp_path):
    with locked(epath.Path(tmp_path)):
        long_ago = time.time() - 3600
        os.utime(tmp_path / LOCK, (long_ago, long_ago))
        _wait_for(lambda: (tmp_path / LOCK).stat().st_mtime > long_ago + 1000)


@pytest.mark.thorough
@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
@pytest.mark.usefixtures("hurried")
def test_a_damaged_lock_is_respected_while_it_is_renewed(content, tmp_path, monkeypatch):
    path = tmp_path / LOCK
    path.write_text(content)
    sleep = time.sleep
    with monkeypatch.context() as renewed:
        renewed.setattr(time, "sleep", lambda seconds: (sleep(seconds), path.touch()))
        with pytest.raises(WriteError, match="in use"), locked(epath.Path(tmp_path)):
            pass
    with locked(epath.Path(tmp_path)):
        pass


@pytest.mark.parametrize("where", ["file system", "bucket"])
@pytest.mark.usefixtures("hurried")
def test_a_holder_whose_lock_was_taken_over_learns_so(where, tmp_path, bucket):
    """As after a suspension; it doesn't touch the other holder's lock."""
    folder = tmp_path if where == "file system" else bucket / "taken over"
    folder.mkdir(exist_ok=True)
    workdir = epath.Path("gs://bucket/taken over" if where == "bucket" else tmp_path)
    said = []
    with locked(workdir, on_lost=said.append) as check_place:
        time.sleep(0.25)  # two renewals
        assert said == []
        check_place()
        write_lock(folder / "new", ELSEWHERE)
        (folder / "new").replace(folder / LOCK)
        os.utime(folder / LOCK, (1, 1))
        time.sleep(0.11)  # in a bucket it looks as often as it renews
        with pytest.raises(PeerError, match="its lock is held by process .* on elsewhere"):
            check_place()
        _wait_for(lambda: said)
        time.sleep(0.25)
    assert len(said) == 1
    assert f"{workdir} isn't this run's any more" in said[0]
    assert "process" in said[0]
    assert "on elsewhere, since 20" in said[0]
    assert token_of(folder / LOCK) == "another"
    assert (folder / LOCK).stat().st_mtime == 1


def test_a_process_ends_that_has_lost_its_lock(tmp_path):
    program = (
        "import sys, time; from etils import epath; from resnet_jax.checkpoint import lock\n"
        "from resnet_jax.cli.common.exits import end_with; lock._RENEW_S = 0.1\n"
        "with lock.locked(epath.Path(sys.argv[1]), on_lost=end_with):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    process = _hold(tmp_path, program)
    write_lock(tmp_path / "new", ELSEWHERE)
    (tmp_path / "new").replace(tmp_path / LOCK)
    assert process.wait(60) == 71
    assert token_of(tmp_path / LOCK) == "another"


@pytest.mark.usefixtures("hurried")
def test_a_lock_that_is_gone_is_lost(tmp_path, caplog):
    """Another run may have taken it over and ended; its results must not be overwritten."""
    with locked(epath.Path(tmp_path)):
        (tmp_path / LOCK).unlink()
        _wait_for(lambda: "its lock is gone" in caplog.text)  # without `on_lost` it is logged
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("hurried")
def test_a_run_ends_that_has_lost_its_directory(tiny_config, tmp_path, monkeypatch):
    said = []

    def lose(*_):
        write_lock(tmp_path / LOCK, ELSEWHERE)
        _wait_for(lambda: said)
        raise ConfigError("This is far enough.")

    monkeypatch.setattr(opening, "check_config", lose)
    with pytest.raises(ConfigError, match="far enough"):
        resnet_jax.fit(tiny_config, tmp_path, on_hang=said.append)
    assert "isn't this run's any more" in said[0]


@pytest.mark.usefixtures("hurried")
def test_a_bucket_that_does_not_answer_is_not_a_lost_lock(bucket, monkeypatch):
    workdir = epath.Path("gs://bucket/silent")
    workdir.mkdir()
    said, failures = [], []

    def fault(call, path):
        if call == "rb" and path.endswith(LOCK) and len(failures) < 3:
            failures.append(call)
            raise ClientError("503\nService Unavailable")

    with locked(workdir, on_lost=said.append):
        monkeypatch.setattr(BucketFileSystem, "fault", staticmethod(fault))
        _wait_for(lambda: len(failures) == 3)
        content = (bucket / "silent" / LOCK).read_bytes()
        _wait_for(lambda: (bucket / "silent" / LOCK).read_bytes() not in {content, b""})
    assert said == []
    assert not (bucket / "silent" / LOCK).exists()


@pytest.mark.usefixtures("hurried")
def test_no_renewal_follows_a_release(bucket, monkeypatch):
    workdir = epath.Path("gs://bucket/released")
    workdir.mkdir()
    writing = threading.Event()

    def slow(call, path):
        if call == "wb" and path.endswith(LOCK):
            writing.set()
            time.sleep(0.2)

    with locked(workdir):
        monkeypatch.setattr(BucketFileSystem, "fault", staticmethod(slow))
        assert writing.wait(60)
        release_all()
        time.sleep(0.4)
        assert not (bucket / "released" / LOCK).exists()


@pytest.mark.parametrize("failing", ["rb", "wb"])
def test_a_lock_in_a_bucket_that_cannot_be_used(failing, bucket, monkeypatch):
    workdir = epath.Path("gs://bucket/closed")
    workdir.mkdir(exist_ok=True)

    def fault(call, path):
        if call == failing and path.endswith(LOCK):
            raise ClientError("403\nForbidden")

    monkeypatch.setattr(BucketFileSystem, "fault", staticmethod(fault))
    message = r"closed/\.lock .* \(403 Forbidden\)"
    with pytest.raises(WriteError, match=message) as error, locked(workdir):
        pass
    assert "\n" not in str(error.value)


def test_a_lock_in_a_bucket(bucket):
    workdir = epath.Path("gs://bucket/locked")
    workdir.mkdir()
    with locked(workdir):
        assert (bucket / "locked" / LOCK).exists()
        with pytest.raises(WriteError, match="in use"), locked(workdir):
            pass
    assert not (bucket / "locked" / LOCK).exists()


@pytest.mark.thorough
@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[" * 100_000,
        "\0" * 100,
        '{"pid": "../../etc", "here": null}',
        '{"pid": 1.5}',
        '{"renewed": "yesterday", "token": 3}',
        '{"host": ["a"], "pid": 1, "since": {}}',
    ],
)
@pytest.mark.usefixtures("hurried")
def test_a_damaged_lock_is_watched_and_taken_over(content, tmp_path):
    path = tmp_path / LOCK
    path.write_text(content)
    assert lock.holder_of(epath.Path(tmp_path)) == "a process that isn't known"
    began = time.monotonic()
    with locked(epath.Path(tmp_path)):
        assert time.monotonic() - began >= 0.8
        assert json.loads(path.read_text())["pid"] == os.getpid()
