"""One run at a time in a directory, and no lock outlives its holder."""

import concurrent.futures
import json
import os
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from resnet_jax.checkpoint import lock
from resnet_jax.checkpoint.lock import LOCK, locked
from resnet_jax.errors import WriteError

HOLD = (
    "import sys, time; from etils import epath; from resnet_jax.checkpoint.lock import locked\n"
    "with locked(epath.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
)


def _hold(workdir) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(workdir)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


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
    assert time.monotonic() - began < 2
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_is_not_waited_for_is_dead(tmp_path):
    process = _hold(tmp_path)
    process.kill()
    time.sleep(0.2)  # a zombie until its parent asks for it
    with locked(epath.Path(tmp_path)):
        pass
    process.wait()


@pytest.mark.parametrize(
    ("change", "free"),
    [
        ({"boot": "another"}, True),  # the machine was started anew
        ({"started": "1"}, True),  # another process has the number now
        ({"pid": 2**22 + 1}, True),
        ({}, False),
    ],
)
def test_who_holds_it(change, free, tmp_path):
    (tmp_path / LOCK).write_text(json.dumps(lock._this_process() | change))
    if free:
        with locked(epath.Path(tmp_path)):
            pass
    else:
        with pytest.raises(WriteError, match="in use"), locked(epath.Path(tmp_path)):
            pass


@pytest.fixture
def _hurried(monkeypatch):
    """Signs of life are due in a second."""
    monkeypatch.setattr(lock, "_LOOK_S", 0.05)
    monkeypatch.setattr(lock, "_STALE_S", 1.0)


_ELSEWHERE = {"host": "elsewhere"}
_IN_ANOTHER_CONTAINER = {"namespace": "pid:[1]", "pid": 2**22 + 1}


@pytest.mark.parametrize("change", [_ELSEWHERE, _IN_ANOTHER_CONTAINER])
@pytest.mark.usefixtures("_hurried")
def test_a_holder_that_cannot_be_seen_is_waited_for(change, tmp_path):
    """It is alive if it renews its lock, and else dead, whatever its clock says."""
    path = tmp_path / LOCK
    path.write_text(json.dumps(lock._this_process() | change))
    ended = threading.Event()

    def renew():
        while not ended.wait(0.3):
            path.touch()

    renewing = threading.Thread(target=renew)
    renewing.start()
    with pytest.raises(WriteError, match="in use"), locked(epath.Path(tmp_path)):
        pass
    ended.set()
    renewing.join()
    ahead = time.time() + 60
    os.utime(path, (ahead, ahead))
    began = time.monotonic()
    with locked(epath.Path(tmp_path)):
        assert time.monotonic() - began >= 1.0


@pytest.mark.usefixtures("_hurried")
def test_a_holder_elsewhere_that_ends_meanwhile_makes_way(tmp_path):
    (tmp_path / LOCK).write_text(json.dumps(lock._this_process() | _ELSEWHERE))
    threading.Timer(0.3, (tmp_path / LOCK).unlink).start()
    began = time.monotonic()
    with locked(epath.Path(tmp_path)):
        assert time.monotonic() - began < 1.0


def test_another_hosts_lock_of_long_ago_is_taken_at_once(tmp_path):
    (tmp_path / LOCK).write_text(json.dumps(lock._this_process() | _ELSEWHERE))
    long_ago = time.time() - 3600
    os.utime(tmp_path / LOCK, (long_ago, long_ago))
    began = time.monotonic()
    with locked(epath.Path(tmp_path)):
        assert time.monotonic() - began < 1.0


def test_who_ends_at_once_gives_up_its_lock_first(tmp_path):
    program = (
        "import sys; from etils import epath; from resnet_jax.checkpoint.lock import locked\n"
        "from resnet_jax.cli.flags import end_with\n"
        "with locked(epath.Path(sys.argv[1])): end_with('Process 1 has ended.')"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert done.returncode == 71
    assert list(tmp_path.iterdir()) == []


def test_a_held_lock_is_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_RENEW_S", 0.05)
    with locked(epath.Path(tmp_path)):
        long_ago = time.time() - 3600
        os.utime(tmp_path / LOCK, (long_ago, long_ago))
        time.sleep(0.3)
        assert (tmp_path / LOCK).stat().st_mtime > long_ago + 1000


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
@pytest.mark.usefixtures("_hurried")
def test_a_damaged_lock_is_respected_while_it_is_renewed(content, tmp_path):
    path = tmp_path / LOCK
    path.write_text(content)
    touching = threading.Timer(0.3, path.touch)
    touching.start()
    with pytest.raises(WriteError, match="in use"), locked(epath.Path(tmp_path)):
        pass
    touching.join()
    with locked(epath.Path(tmp_path)):
        pass


def test_of_many_that_find_a_dead_ones_lock_one_gets_it(tmp_path):
    for _ in range(20):
        (tmp_path / LOCK).write_text(json.dumps(lock._this_process() | {"pid": 2**22 + 1}))

        def take(_):
            try:
                lock._take(epath.Path(tmp_path), lock._this_process())
            except WriteError:
                return False
            return True

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(take, range(8))) == 1
        (tmp_path / LOCK).unlink()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_in_a_bucket(bucket):
    workdir = epath.Path("gs://bucket/locked")
    workdir.mkdir()
    with locked(workdir):
        assert (bucket / "locked" / LOCK).exists()
        with pytest.raises(WriteError, match="in use"), locked(workdir):
            pass
    assert not (bucket / "locked" / LOCK).exists()
