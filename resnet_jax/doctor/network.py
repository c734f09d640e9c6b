"""The coordinator of several processes: its name, its port, and what stands in the way."""

import errno
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from resnet_jax.doctor.finding import Finding, fail, ok, warn
from resnet_jax.errors import ConfigError, PeerError, UsageError

PORT = 8476
_TIMEOUT_S = 3.0
_NAME = "coordinator"

_BREAKING = {
    "JAX_DISABLE_JIT": "but training steps are compiled ahead of time",
    "JAX_ENABLE_X64": "but runs are written for 32-bit numbers",
}
_TRUE = ("1", "on", "t", "true", "y", "yes")  # as JAX reads its variables


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT` or `[IPV6]:PORT`.

    Raises:
        UsageError: it isn't one.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UsageError(f"the coordinator is {address!r}; it must be HOST:PORT, as in node0:8476")
    return host, int(port)


def several_processes(environment: Mapping[str, str], *, coordinator: str | None = None) -> str:
    """Why a run here would be one of several processes, as user or scheduler say; "" if not."""
    if coordinator:
        return f"the coordinator is {coordinator}"
    if address := environment.get("JAX_COORDINATOR_ADDRESS"):
        return f"JAX_COORDINATOR_ADDRESS is {address}"
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "")
    if "," in hosts:
        return f"TPU_WORKER_HOSTNAMES names {hosts.count(',') + 1} hosts"
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        count = environment.get(name, "1")
        if count.isdecimal() and int(count) > 1:
            return f"{name} is {count}"
    return ""


def check_coordinator(address: str | None) -> Iterator[Finding]:
    """Whether the coordinator's port is free, if it is this host's, or else answers.

    Args:
        address: HOST:PORT; None for the usual port of this host, which only several processes need.

    Raises:
        UsageError: `address` isn't HOST:PORT.
    """
    if address is None:
        if reason := _occupied(PORT):
            yield warn(
                _NAME,
                f"port {PORT} of this host can't be had ({reason}); one process alone needs none",
                "give several processes another one, and check it: --coordinator HOST:PORT",
            )
        else:
            yield ok(_NAME, f"port {PORT} of this host is free")
        return
    host, port = parse_address(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        remedy = "correct the name, or add it to DNS or /etc/hosts"
        yield fail(_NAME, f"{host} can't be resolved ({reason})", remedy, error=ConfigError)
        return
    where = f"{host} is {', '.join(dict.fromkeys(str(entry[4][0]) for entry in found))}"
    if any(_is_ours(family, name) for family, *_, name in found):
        if reason := _occupied(port):
            yield fail(
                _NAME,
                f"{where}, this host, whose port {port} can't be had ({reason})",
                f"end what listens there (ss -ltnp 'sport = {port}'), or choose another port",
                error=ConfigError,
            )
        else:
            yield ok(_NAME, f"{where}, this host, whose port {port} is free")
        return
    yield _reach(where, port, [(family, name) for family, *_, name in found])


def _is_ours(family: int, address: Any) -> bool:
    """Whether the address is one of this host's: only those can be bound."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address[0], 0, *address[2:]))
    except OSError:
        return False
    return True


def _occupied(port: int) -> str:
    """Why the coordinator couldn't listen on the port, on all addresses as it does; "" if it can.

    Connections of the past, in TIME_WAIT, don't count.
    """
    both = socket.has_dualstack_ipv6()
    try:
        with socket.socket(socket.AF_INET6 if both else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if both:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            probe.bind(("", port))
            probe.listen(1)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _reach(where: str, port: int, addresses: list[tuple[int, Any]]) -> Finding:
    """Connect to the addresses in turn: the first that accepts decides, or else a refusal."""
    reason, is_refused = "", False
    for family, address in addresses:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.settimeout(_TIMEOUT_S)
                probe.connect(address)
            return ok(_NAME, f"{where}, and answers on port {port}")
        except ConnectionRefusedError:
            is_refused = True
        except OSError as error:
            late = isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT
            reason = f"no answer in {_TIMEOUT_S:g} s" if late else error.strerror or str(error)
    if is_refused:
        return warn(
            _NAME,
            f"{where}; it can be reached, but nothing listens on its port {port}",
            "start the process that coordinates; if it runs, a firewall refuses",
        )
    remedy = "see that it is up, and that firewalls let this port through"
    return fail(_NAME, f"{where}; port {port} can't be reached: {reason}", remedy, error=PeerError)


def check_environment(environment: Mapping[str, str], *, several: str) -> Iterator[Finding]:
    """Variables that are known to break runs.

    Those that keep JAX from starting at all, as JAX_PLATFORMS and XLA_FLAGS may, are noticed with
    the devices.

    Args:
        environment: variables by name.
        several: as of `several_processes`.
    """
    broken = [name for name in _BREAKING if environment.get(name, "").lower() in _TRUE]
    for name in broken:
        message = f"{name} is {environment[name]}, {_BREAKING[name]}"
        yield fail("environment", message, f"unset {name}", error=ConfigError)
    proxies = sorted(
        name
        for name, value in environment.items()
        if name.lower().endswith("_proxy") and name.lower() != "no_proxy" and value
    )
    if proxies and several:
        yield warn(
            "environment",
            f"{', '.join(proxies)} may make several processes hang while they connect ({several})",
            f"unset {' '.join(proxies)}",
        )
    if not broken and not (proxies and several):
        yield ok("environment", "no variable is set that is known to break a run")
