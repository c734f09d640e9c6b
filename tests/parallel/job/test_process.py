"""How processes find each other; whole jobs are in tests/train/test_jobs.py."""

import concurrent.futures
import contextlib
import os
import resource
import socket
import subprocess
import sys
import threading
import time

import jax
import portpicker
import pytest

from resnet_jax.errors import ConfigError, PeerError, UsageError
from resnet_jax.parallel.job import rendezvous as rollcall
from resnet_jax.parallel.job.process import (
    Job,
    Vote,
    connect,
    failing_together,
    find_job,
    member_of,
)
from resnet_jax.parallel.job.rendezvous import call_roll
from resnet_jax.parallel.mesh import make_mesh

_SCHEDULERS = ("SLURM_", "OMPI_", "TPU_", "KUBERNETES_", "MEGASCALE_", "JAX_")
_SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[003-007,9]",
    "SLURM_NTASKS": "6",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}


@pytest.fixture(autouse=True)
def _no_scheduler(monkeypatch):
    for name in [n for n in os.environ if n.startswith(_SCHEDULERS)]:
        monkeypatch.delenv(name)


def _set(monkeypatch, **variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_without_a_scheduler_or_flags_there_is_one_process():
    assert find_job() is None
    assert connect(None, end=print) is None
    with member_of(None, timeout_s=1, end=print):
        pass


def test_flags_say_it_all():
    assert find_job(coordinator="a:1", processes=4, process=3) == Job("a:1", 4, 3)
    assert find_job(coordinator="a:1", processes=1, process=0) is None


def test_slurm_is_read(monkeypatch):
    _set(monkeypatch, **_SLURM)
    assert find_job() == Job("node003:61441", 6, 2, (0,))
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "4,5")
    assert find_job() == Job("node003:61441", 6, 2, (4, 5))
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert find_job() is None


def test_open_mpi_4_is_read(monkeypatch):
    variables = {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": "8",
        "OMPI_COMM_WORLD_RANK": "5",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    }
    _set(monkeypatch, **variables)
    job = find_job()
    assert (job.processes, job.process, job.local_devices) == (8, 5, (1,))
    assert job.coordinator.startswith("10.96.0.1:")


def test_open_mpi_5_knows_the_numbers_but_not_where_process_0_is(monkeypatch):
    _set(monkeypatch, OMPI_COMM_WORLD_SIZE="8", OMPI_COMM_WORLD_RANK="5")
    with pytest.raises(UsageError, match="--coordinator is missing: there are 8 processes"):
        find_job()
    assert find_job(coordinator="first:1234") == Job("first:1234", 8, 5)


def test_open_mpi_5_inside_slurm_gives_each_process_a_device_of_its_own(monkeypatch):
    """SLURM started one daemon on each node, so its own numbers are those of the daemons."""
    ranks = {"SIZE": "16", "RANK": "11", "LOCAL_RANK": "3"}
    _set(monkeypatch, **_SLURM, **{f"OMPI_COMM_WORLD_{name}": n for name, n in ranks.items()})
    job = find_job()
    assert (job.processes, job.process, job.local_devices) == (16, 11, (3,))


def test_jaxs_variables_are_read(monkeypatch):
    _set(
        monkeypatch,
        JAX_COORDINATOR_ADDRESS="first:1234",
        JAX_NUM_PROCESSES="4",
        JAX_PROCESS_ID="0",
        JAX_LOCAL_DEVICE_IDS="2",
    )
    assert find_job() == Job("first:1234", 4, 0, (2,))
    assert find_job(processes=8, process=7) == Job("first:1234", 8, 7, (2,))
    for wrong in ("four", "-4", "4,5", "4_0", "٤", "9" * 5000):
        monkeypatch.setenv("JAX_NUM_PROCESSES", wrong)
        with pytest.raises(UsageError, match="JAX_NUM_PROCESSES is '.*'; it must be a number"):
            find_job()
    monkeypatch.delenv("JAX_NUM_PROCESSES")
    with pytest.raises(UsageError, match="--num_processes is missing: JAX_COORDINATOR_ADDRESS and"):
        find_job()


def test_a_process_on_its_own_asks_no_cluster(monkeypatch):
    from jax._src.clusters import ClusterEnv

    def ask(*_):
        raise RuntimeError("not allowed to list pods")

    monkeypatch.setattr(ClusterEnv, "auto_detect_unset_distributed_params", ask)
    with pytest.raises(UsageError, match=r"not allowed to list pods.*or --num_processes=1 for"):
        find_job()
    assert find_job(processes=1) is None


def test_a_tpu_slice_on_kubernetes_is_read(monkeypatch):
    """Two slices of two hosts; this is the second host of the second."""
    from jax._src.clusters import cloud_tpu_cluster

    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    _set(
        monkeypatch,
        TPU_WORKER_HOSTNAMES="localhost,other",
        TPU_WORKER_ID="1",
        TPU_SKIP_MDS_QUERY="1",
        MEGASCALE_COORDINATOR_ADDRESS="localhost:8080",
        MEGASCALE_NUM_SLICES="2",
        MEGASCALE_SLICE_ID="1",
    )
    job = find_job()
    assert (job.coordinator, job.processes, job.process) == ("localhost:8482", 4, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"processes": 4}, "--coordinator and --process_id is missing: --num_processes was given"),
        ({"coordinator": "a:1"}, "--num_processes and --process_id is missing"),
        ({"coordinator": "a:1", "processes": 4, "process": 4}, "it must be in 0 … 3"),
        ({"coordinator": "a:1", "processes": 0, "process": 0}, "it must be in 1 … 65536"),
        ({"coordinator": "a:1", "processes": 10**12, "process": 0}, "it must be in 1 … 65536"),
    ],
)
def test_an_incomplete_description_is_refused(given, message):
    with pytest.raises(UsageError, match=message):
        find_job(**given)


def _roll(calls, *, port=None, timeout_s=20.0):
    """The outcomes of processes, given as (number, of how many), that call at the same time."""
    port = port or portpicker.pick_unused_port()

    def one(process, processes):
        address = f"127.0.0.1:{port}"
        try:
            lines = call_roll(address, process=process, processes=processes, timeout_s=timeout_s)
        except (PeerError, ConfigError) as error:
            return error
        for line in lines.values():
            line.close()
        return None

    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(one, *call) for call in calls]]


def test_the_roll_is_complete_and_the_port_free_again():
    port = portpicker.pick_unused_port()
    for _ in range(2):  # at once, as JAX does
        assert _roll([(i, 5) for i in range(5)], port=port) == [None] * 5
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_missing_processes_are_named_to_all_that_are_there():
    outcomes = _roll([(0, 4), (2, 4)], timeout_s=1.0)
    for error in outcomes:
        assert isinstance(error, PeerError)
        assert "Of 4 processes 1, 3 didn't call process 0" in str(error)


def test_a_coordinator_that_never_comes_is_named():
    began = time.monotonic()
    (error,) = _roll([(1, 2)], timeout_s=1.0)
    assert isinstance(error, PeerError)
    assert "can't reach process 0 at 127.0.0.1" in str(error)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        ([(0, 2), (1, 3)], "was started as one of 3, process 0 as one of 2"),
        ([(0, 3), (1, 3), (1, 3)], "more than one process 1 of 3"),
    ],
)
def test_processes_that_disagree_are_refused(calls, message):
    for error in _roll(calls):
        assert isinstance(error, ConfigError)
        assert message in str(error)


def test_strangers_on_the_port_are_ignored():
    port = portpicker.pick_unused_port()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        roll = pool.submit(_roll, [(0, 2)], port=port)
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b"x" * 9000 + b"\n", b""):
            for _ in range(100):
                with contextlib.suppress(ConnectionRefusedError):
                    stranger = socket.create_connection(("127.0.0.1", port))
                    break
                time.sleep(0.05)
            with stranger, contextlib.suppress(OSError):
                stranger.sendall(said)
        assert _roll([(1, 2)], port=port) == [None]
        assert roll.result() == [None]


def _dial(port):
    """A connection to process 0, as soon as it listens."""
    for _ in range(200):
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection(("127.0.0.1", port))
        time.sleep(0.05)
    raise AssertionError("nobody listens")


def test_a_process_that_was_started_again_while_it_waited_takes_its_own_place():
    port = portpicker.pick_unused_port()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        roll = pool.submit(_roll, [(0, 3)], port=port)
        with _dial(port) as died:
            died.sendall(b'{"process": 1, "of": 3}\n')
            time.sleep(0.1)
        assert _roll([(1, 3), (2, 3)], port=port) == [None, None]
        assert roll.result() == [None]


def test_silent_strangers_delay_neither_the_roll_nor_its_end():
    port = portpicker.pick_unused_port()
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as strangers:
        roll = pool.submit(_roll, [(0, 2)], port=port)
        for _ in range(5):
            strangers.enter_context(_dial(port))
        assert _roll([(1, 2)], port=port) == [None]
        assert roll.result() == [None]
        roll = pool.submit(_roll, [(0, 2)], port=port, timeout_s=1.0)
        for _ in range(5):
            strangers.enter_context(_dial(port)).sendall(b"{")
        assert "Of 2 processes 1 didn't call" in str(roll.result()[0])
    assert time.monotonic() - began < 5


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
        roll = pool.submit(_roll, [(1, 2)], port=port)
        with server.accept()[0] as caller:
            caller.sendall(said)
            (error,) = roll.result()
    assert isinstance(error, ConfigError)
    assert f"At 127.0.0.1:{port} something else than process 0 answers" in str(error)
    assert "\n" not in str(error)
    assert len(str(error)) < 600


def test_a_crowd_of_silent_strangers_uses_up_no_files(monkeypatch):
    monkeypatch.setattr(rollcall, "_MOST_CALLING", 8)
    monkeypatch.setattr(rollcall, "_CALLING_S", 0.2)
    port = portpicker.pick_unused_port()
    before = len(os.listdir("/proc/self/fd"))
    with concurrent.futures.ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as strangers:
        roll = pool.submit(_roll, [(0, 2)], port=port)
        for _ in range(50):
            strangers.enter_context(_dial(port))
        time.sleep(0.5)
        opened = len(os.listdir("/proc/self/fd")) - before - 50
        assert opened < 10  # the server, the selector, and those that were kept
        slow = strangers.enter_context(_dial(port))
        assert _is_hung_up_on(slow, b" ")
        assert _roll([(1, 2)], port=port) == [None]
        assert roll.result() == [None]


_FEW_FILES = """
import resource, sys
from resnet_jax.parallel.job.rendezvous import call_roll
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
call_roll("127.0.0.1:" + sys.argv[1], process=0, processes=2, timeout_s=60)
"""


def test_a_process_that_may_open_few_files_outlives_a_crowd():
    port = portpicker.pick_unused_port()
    first = subprocess.Popen([sys.executable, "-c", _FEW_FILES, str(port)])
    try:
        with contextlib.ExitStack() as strangers:
            for _ in range(100):
                strangers.enter_context(_dial(port))
            assert _roll([(1, 2)], port=port) == [None]
        assert first.wait(20) == 0
    finally:
        first.kill()


def _is_hung_up_on(stranger, said):
    """Whether the other side hangs up within seconds, though it is told something all the time."""
    stranger.settimeout(0.05)
    for _ in range(60):
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
        roll = pool.submit(_roll, [(0, 2)], port=port)
        with _dial(port) as stranger:
            stranger.sendall(said)
            assert _roll([(1, 2)], port=port) == [None]
        assert roll.result() == [None]


def test_more_processes_than_open_files_are_refused_at_once(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    with pytest.raises(ConfigError, match=r"needs 1,032 open files, .* may have 64 here"):
        call_roll("127.0.0.1:9", process=0, processes=1000, timeout_s=1)


@pytest.mark.parametrize("timeout_s", [float("inf"), float("nan"), 0.0, -1.0, 1e9])
def test_a_time_out_without_end_is_refused(timeout_s):
    with pytest.raises(
        UsageError, match=r"--coordinator_timeout_s is .*; it must be in 1 … 86,400"
    ):
        connect(Job("127.0.0.1:9", 2, 1), timeout_s=timeout_s, end=print)


@pytest.mark.thorough
@pytest.mark.parametrize("said", [b"", b"x"])
def test_a_stranger_on_the_coordinators_port_is_waited_for_no_longer(said, monkeypatch):
    """It says nothing, or a byte now and then, and never ends its line."""
    monkeypatch.setattr(rollcall, "_LATER_S", 0.5)
    done = threading.Event()
    with (
        concurrent.futures.ThreadPoolExecutor(1) as pool,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        port, began = server.getsockname()[1], time.monotonic()
        roll = pool.submit(_roll, [(1, 2)], port=port, timeout_s=1.0)
        with server.accept()[0] as caller, contextlib.suppress(OSError):
            while said and time.monotonic() - began < 10:
                caller.sendall(said)
                done.wait(0.1)
            (error,) = roll.result()
        (error,) = roll.result()
    assert isinstance(error, PeerError)
    assert f"can't reach process 0 at 127.0.0.1:{port} within 1 s (timed out)" in str(error)
    assert time.monotonic() - began < 8


def test_a_long_list_of_missing_processes_arrives():
    for error in _roll([(0, 2000), (1, 2000)], timeout_s=1.0):
        assert isinstance(error, PeerError)
        assert "Of 2000 processes 2 … 1999 didn't call process 0" in str(error)


@pytest.mark.parametrize("address", ["nowhere", "host:", ":80", "host:port", "host:70000"])
def test_an_address_without_host_or_port_is_refused(address):
    with pytest.raises(ConfigError, match="it must be HOST:PORT"):
        call_roll(address, process=0, processes=2, timeout_s=1)


def test_a_port_in_use_is_named():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConfigError, match=f"can't listen on port {port}"):
            call_roll(f"127.0.0.1:{port}", process=0, processes=2, timeout_s=1)


def test_alone_a_wish_is_the_outcome_and_an_error_is_ones_own():
    vote = Vote(make_mesh())
    assert vote.cast(False, True) == (False, True)
    with pytest.raises(ConfigError, match="mine"), failing_together({}):
        raise ConfigError("mine")
    assert jax.process_count() == 1
