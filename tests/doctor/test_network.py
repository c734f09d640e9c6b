"""The coordinator of several processes, and variables that stand in a run's way."""

import contextlib
import socket

import pytest

from resnet_jax.doctor import network
from tests.doctor.helpers import only, run_doctor


@pytest.fixture
def occupied():
    """A port of the loopback address at which something listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_in_use_ends_with_78(capsys, quick, occupied, monkeypatch):
    code, found = run_doctor(capsys, "--coordinator", f"127.0.0.1:{occupied}")
    assert code == 78
    assert (
        f"port {occupied} can't be had (Address already in use)"
        in (found["coordinator"][0]["message"])
    )
    monkeypatch.setattr(network, "PORT", occupied)
    assert only(network.check_coordinator(None)).status == "warn"  # one process needs none


def test_a_free_port_of_this_host_is_fine(occupied):
    with socket.create_server(("127.0.0.1", 0)) as other:
        free = other.getsockname()[1]
    for name in ("127.0.0.1", "localhost"):
        one = only(network.check_coordinator(f"{name}:{free}"))
        assert (one.status, "this host" in one.message) == ("ok", True)


def test_a_name_that_nobody_knows_ends_with_78(capsys, quick, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "node0.invalid:8476")
    code, found = run_doctor(capsys)
    assert code == 78
    assert "node0.invalid can't be resolved" in found["coordinator"][0]["message"]


def test_another_host_is_asked(occupied, monkeypatch):
    """Loopback stands for a host elsewhere."""
    monkeypatch.setattr(network, "_is_ours", lambda *_: False)
    assert "answers" in only(network.check_coordinator(f"127.0.0.1:{occupied}")).message
    with socket.create_server(("127.0.0.1", 0)) as other:
        free = other.getsockname()[1]
    refused = only(network.check_coordinator(f"127.0.0.1:{free}"))
    assert (refused.status, "nothing listens" in refused.message) == ("warn", True)
    # A name may have several addresses, of which one accepts.
    addresses = [(socket.AF_INET, ("127.0.0.1", port)) for port in (free, occupied)]
    assert network._reach("host", occupied, addresses).status == "ok"
    # A full queue of connections that nobody accepts drops further ones, like a firewall.
    monkeypatch.setattr(network, "_TIMEOUT_S", 0.3)
    with socket.socket() as silent, contextlib.ExitStack() as stack:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(silent.getsockname())
        unanswered = only(network.check_coordinator(f"127.0.0.1:{silent.getsockname()[1]}"))
    assert (unanswered.status, unanswered.exit_code) == ("fail", 71)
    assert "no answer in 0.3 s" in unanswered.message


@pytest.mark.parametrize("address", ["[::1]:8476", "::1:8476"])
def test_an_address_of_ipv6_is_understood(address):
    assert network.parse_address(address) == ("::1", 8476)


def test_proxies_matter_to_several_processes_only(capsys, quick, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    _, found = run_doctor(capsys)
    assert found["environment"][0]["status"] == "ok"
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b,c,d")
    _, found = run_doctor(capsys)
    line = found["environment"][0]
    assert (line["status"], line["remedy"]) == ("warn", "unset https_proxy")
    assert "TPU_WORKER_HOSTNAMES names 4 hosts" in line["message"]


@pytest.mark.parametrize("name", ["JAX_DISABLE_JIT", "JAX_ENABLE_X64"])
def test_variables_that_break_runs_end_with_78(name, capsys, quick, monkeypatch):
    monkeypatch.setenv(name, "True")
    code, found = run_doctor(capsys)
    line = found["environment"][0]
    assert (code, line["remedy"]) == (78, f"unset {name}")
    monkeypatch.setenv(name, "0")
    assert run_doctor(capsys)[0] == 0
