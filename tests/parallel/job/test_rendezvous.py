"""The rendezvous of processes before JAX connects them; here each is a thread."""

import concurrent.futures
import contextlib
import os
import resource
import socket
import subprocess
import sys
import threading
import time

import portpicker
import pytest

from resnet_jax.errors import ConfigError, PeerError
from resnet_jax.parallel.job import rendezvous as module
from resnet_jax.parallel.job.rendezvous import rendezvous


def _meet(calls, *, port=None, timeout_s=60.0):
    """Errors (or None) of processes, given as (number, number of processes), that meet."""
    port = port or portpicker.pick_unused_port()

    def one(process, processes):
        address = f"127.0.0.1:{port}"
        try:
            connections = rendezvous(
                address, process=process, processes=processes, timeout_s=timeout_s
            )
        except (PeerError, ConfigError) as error:
            return error
        for connection in connections.values():
            connection.close()
        return None

    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(one, *call) for call in calls]]


def test_all_processes_meet_and_the_port_is_free_again():
    port = portpicker.pick_unused_port()
    for _ in range(2):  # at once, as JAX listens on the port
        assert _meet([(i, 5) for i in range(5)], port=port) == [None] * 5
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_missing_processes_are_named_to_all_that_are_there():
    outcomes = _meet([(0, 4), (2, 4)], timeout_s=1.0)
    for error in outcomes:
        assert isinstance(error, PeerError)
        assert "Of 4 processes, 1, 3 didn't connect to process 0" in str(error)


def test_a_coordinator_that_never_comes_is_named():
    began = time.monotonic()
    (error,) = _meet([(1, 2)], timeout_s=1.0)
    assert isinstance(error, PeerError)
    assert "can't reach process 0 at 127.0.0.1" in str(error)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        ([(0, 2), (1, 3)], "was started as one of 3, process 0 as one of 2"),
        ([(0, 3), (1, 3), (1, 3)], "more than one process 1 of 3"),
    ],
)
def test_processes_that_disagree_are_refused(calls, message):
    for error in _meet(calls):
        assert isinstance(error, ConfigError)
        assert message in str(error)


def test_strangers_on_the_port_are_ignored():
    port = portpicker.pick_unused_port()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(_meet, [(0, 2)], port=port)
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b"x" * 9000 + b"\n", b""):
            with _dial(port) as stranger, contextlib.suppress(OSError):
                stranger.sendall(said)
        assert _meet([(1, 2)], port=port) == [None]
        assert first.result() == [None]


def _dial(port):
    """Connect to process 0 as soon as it listens."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection(("127.0.0.1", port))
        time.sleep(0.05)
    raise AssertionError("nobody listens")


def test_a_process_that_was_started_again_while_it_waited_takes_its_own_place():
    port = portpicker.pick_unused_port()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(_meet, [(0, 3)], port=port)
        with _dial(port) as died:
            died.sendall(b'{"process": 1, "of": 3}\n')
            time.sleep(0.1)
        assert _meet([(1, 3), (2, 3)], port=port) == [None, None]
        assert first.result() == [None]


def test_silent_strangers_delay_neither_the_meeting_nor_its_time_out(monkeypatch):
    monkeypatch.setattr(module, "_GREETING_S", 300.0)
    port = portpicker.pick_unused_port()
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as strangers:
        first = pool.submit(_meet, [(0, 2)], port=port)
        for _ in range(5):
            strangers.enter_context(_dial(port))
        assert _meet([(1, 2)], port=port) == [None]
        assert first.result() == [None]
        first = pool.submit(_meet, [(0, 2)], port=port, timeout_s=1.0)
        for _ in range(5):
            strangers.enter_context(_dial(port)).sendall(b"{")
        assert "Of 2 processes, 1 didn't connect" in str(first.result()[0])
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n<html>",
        b'{"ready": true}\n',
        b'{"kind": "PeerError"}\n',
        b"[]\n",
        b"\x16\x03\x01\xff\n",
        b"[" * 5000 + b"\n",
    ],
)
def test_something_else_on_the_port_is_named(said):
    with (
        concurrent.futures.ThreadPoolExecutor(1) as pool,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        port = server.getsockname()[1]
        first = pool.submit(_meet, [(1, 2)], port=port)
        with server.accept()[0] as caller:
            caller.sendall(said)
            (error,) = first.result()
    assert isinstance(error, ConfigError)
    assert f"The program at 127.0.0.1:{port} isn't process 0: it answers" in str(error)
    assert "\n" not in str(error)
    assert len(str(error)) < 600


def test_what_process_0_reports_is_one_line():
    """Whoever it is."""
    with (
        concurrent.futures.ThreadPoolExecutor(1) as pool,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        first = pool.submit(_meet, [(1, 2)], port=server.getsockname()[1])
        with server.accept()[0] as caller:
            caller.sendall(b'{"kind": "PeerError", "message": "one\\r\\nerror: another\\n"}\n')
            (error,) = first.result()
    assert (type(error), str(error)) == (PeerError, "one error: another")


def test_a_crowd_of_silent_strangers_uses_up_no_files(monkeypatch):
    monkeypatch.setattr(module, "_MAX_PENDING", 8)
    monkeypatch.setattr(module, "_GREETING_S", 0.2)
    port = portpicker.pick_unused_port()
    before = len(os.listdir("/proc/self/fd"))
    with concurrent.futures.ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as strangers:
        first = pool.submit(_meet, [(0, 2)], port=port)
        for _ in range(50):
            strangers.enter_context(_dial(port))
        until = time.monotonic() + 60
        # The server, the selector and pending connections.
        while len(os.listdir("/proc/self/fd")) - before - 50 >= 10:
            assert time.monotonic() < until
            time.sleep(0.05)
        slow = strangers.enter_context(_dial(port))
        assert _is_hung_up_on(slow, b" ")
        assert _meet([(1, 2)], port=port) == [None]
        assert first.result() == [None]


_FEW_FILES = """
import resource, sys
from resnet_jax.parallel.job.rendezvous import rendezvous
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
rendezvous("127.0.0.1:" + sys.argv[1], process=0, processes=2, timeout_s=60)
"""


def test_a_process_that_may_open_few_files_outlives_a_crowd():
    port = portpicker.pick_unused_port()
    first = subprocess.Popen([sys.executable, "-c", _FEW_FILES, str(port)])
    try:
        with contextlib.ExitStack() as strangers:
            for _ in range(100):
                strangers.enter_context(_dial(port))
            assert _meet([(1, 2)], port=port) == [None]
        assert first.wait(60) == 0
    finally:
        first.kill()


def _is_hung_up_on(stranger, said):
    """Whether the other side closes the connection within a minute, despite steady input."""
    stranger.settimeout(0.05)
    for _ in range(600):
        try:
            stranger.sendall(said)
            if not stranger.recv(1):
                return True
        except TimeoutError:
            continue
        except OSError:
            return True
    return False


@pytest.mark.parametrize(
    "said",
    [
        *(b'{"process": true, "of": 2}\n', b'{"process": 1.0, "of": 2}\n'),
        *(b'{"process": "1", "of": "2"}\n', b'{"process": -1, "of": 2}\n'),
        b'{"process": 1, "of": ' + b"9" * 4000 + b"}\n",
    ],
)
def test_who_gives_no_number_of_a_process_is_a_stranger(said):
    port = portpicker.pick_unused_port()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(_meet, [(0, 2)], port=port)
        with _dial(port) as stranger:
            stranger.sendall(said)
            assert _meet([(1, 2)], port=port) == [None]
        assert first.result() == [None]


def test_more_processes_than_open_files_are_refused_at_once(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    with pytest.raises(ConfigError, match=r"needs 1,032 open files, .* may have 64 here"):
        rendezvous("127.0.0.1:9", process=0, processes=1000, timeout_s=1)


@pytest.mark.thorough
@pytest.mark.parametrize("said", [b"", b"x"])
def test_a_stranger_on_the_coordinators_port_is_waited_for_no_longer(said, monkeypatch):
    """It sends nothing, or single bytes without a line break."""
    monkeypatch.setattr(module, "_OUTCOME_DELAY_S", 0.5)
    done = threading.Event()
    with (
        concurrent.futures.ThreadPoolExecutor(1) as pool,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        port, began = server.getsockname()[1], time.monotonic()
        first = pool.submit(_meet, [(1, 2)], port=port, timeout_s=1.0)
        with server.accept()[0] as caller, contextlib.suppress(OSError):
            while said and time.monotonic() - began < 10:
                caller.sendall(said)
                done.wait(0.1)
            (error,) = first.result()
        (error,) = first.result()
    assert isinstance(error, PeerError)
    assert f"can't reach process 0 at 127.0.0.1:{port} within 1 s (timed out)" in str(error)
    assert time.monotonic() - began < 30


def test_a_long_list_of_missing_processes_arrives():
    for error in _meet([(0, 2000), (1, 2000)], timeout_s=1.0):
        assert isinstance(error, PeerError)
        assert "Of 2000 processes, 2 … 1999 didn't connect to process 0" in str(error)


@pytest.mark.parametrize("address", ["nowhere", "host:", ":80", "host:port", "host:70000"])
def test_an_address_without_host_or_port_is_refused(address):
    with pytest.raises(ConfigError, match="it must be HOST:PORT"):
        rendezvous(address, process=0, processes=2, timeout_s=1)


def test_a_port_in_use_is_named():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConfigError, match=f"can't listen on port {port}"):
            rendezvous(f"127.0.0.1:{port}", process=0, processes=2, timeout_s=1)
