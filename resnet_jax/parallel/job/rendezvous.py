"""Meeting of the processes of a job, before `jax.distributed.initialize` connects them.

Process 0 listens on the coordinator's port until all other processes have connected to it. Then,
or when the time is up, every process learns the outcome in one sentence: which processes are
missing, or which disagree. The port is free again when JAX takes it over. The connections between
process 0 and the others stay open for `resnet_jax.parallel.job.monitor`.

`jax.distributed.initialize` (tested with jax 0.10.2) can't replace this. If a process is missing,
it aborts the others by SIGABRT after `initialization_timeout`, without naming the missing process.
It accepts processes that were started with different `num_processes`. If two processes have the
same number, it aborts all of them; if the port is in use, process 0 ends by a segmentation fault.
"""

import contextlib
import dataclasses
import json
import selectors
import socket
import time
from collections.abc import Iterable, Iterator, Sequence

from resnet_jax.errors import ConfigError, PeerError
from resnet_jax.utils.files import ensure_open_files

MAX_PROCESSES = 2**16
_MAX_GREETING_BYTES = 4096
_MAX_OUTCOME_BYTES = 2**20  # it may list thousands of processes
_MAX_QUOTE_BYTES = 80
_RETRY_S = 0.2
_OUTCOME_DELAY_S = 5.0  # process 0 may send the outcome so long after the time-out
_MAX_PENDING = 256  # connections that haven't sent their greeting
_GREETING_S = 10.0  # time-out of a greeting; a process sends it at once, and retries
_SPARE_FILES = 32  # that a process needs beside its connections
_ERRORS: dict[str, type[PeerError] | type[ConfigError]] = {
    "PeerError": PeerError,
    "ConfigError": ConfigError,
}


def rendezvous(
    coordinator: str, *, process: int, processes: int, timeout_s: float
) -> dict[int, socket.socket]:
    """Return when all processes of the job have connected to process 0.

    Args:
        coordinator: HOST:PORT of process 0.
        process: number of this process.
        processes: number of processes.
        timeout_s: seconds to wait for the others.

    Returns:
        Open connections by process: from process 0 to all others, from any other to process 0.

    Raises:
        PeerError: a process is missing; all processes that are present get this error.
        ConfigError: the address isn't valid or belongs to another program; the port is in use;
            processes disagree about their number or have the same number; or process 0 can't open
            a file for each process.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(f"--coordinator is {coordinator!r}; it must be HOST:PORT.")
    address = (host.strip("[]"), int(port))
    deadline = time.monotonic() + timeout_s
    if process == 0:
        return _serve(address, processes, deadline, timeout_s)
    return {0: _connect(address, process, processes, deadline, timeout_s)}


def _serve(
    address: tuple[str, int], processes: int, deadline: float, timeout_s: float
) -> dict[int, socket.socket]:
    """Accept the connections of all other processes and send them the outcome."""
    ensure_open_files(processes + _SPARE_FILES, what=f"Process 0 of {processes}")
    present: dict[int, socket.socket] = {}
    error: PeerError | ConfigError | None = None
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listen(address[1]))
        try:
            _accept_all(server, stack, processes, deadline, present)
        except ConfigError as disagreement:
            error = disagreement
        except TimeoutError:
            missing = _ranges(sorted(set(range(1, processes)) - set(present)))
            error = PeerError(
                f"Of {processes} processes, {missing} didn't connect to process 0 at"
                f" {address[0]}:{address[1]} within {timeout_s:g} s."
            )
        _send_outcome(present.values(), error)
        if error:
            raise error
        stack.pop_all()
        server.close()
    return present


def _accept_all(
    server: socket.socket,
    stack: contextlib.ExitStack,
    processes: int,
    deadline: float,
    present: dict[int, socket.socket],
) -> None:
    """Add the connections of all other processes to `present`.

    Raises:
        TimeoutError: some are missing at the deadline.
        ConfigError: processes disagree; the last connection is in `present` too.
    """
    for caller, number, claimed in _greetings(server, stack, deadline):
        error = None
        if claimed != processes:
            error = (
                f"Process {number} ({caller.host}) was started as one of {claimed}, process 0 as"
                f" one of {processes}; start all of them with the same --num_processes."
            )
        elif not 0 < number < processes or not _is_closed(present.get(number)):
            error = (
                f"There is more than one process {number} of {processes} (the second is on"
                f" {caller.host}); give each another --process_id."
            )
        if error:
            present[-1] = caller.connection
            raise ConfigError(error)
        present[number] = caller.connection
        if len(present) == processes - 1:
            for closed in [n for n, connection in present.items() if _is_closed(connection)]:
                del present[closed]  # the process may be started again
        if len(present) == processes - 1:
            return


@dataclasses.dataclass
class _Caller:
    """A connection that hasn't sent its whole greeting."""

    connection: socket.socket
    host: str
    since: float = dataclasses.field(default_factory=time.monotonic)
    received: bytes = b""


def _greetings(
    server: socket.socket, stack: contextlib.ExitStack, deadline: float
) -> Iterator[tuple[_Caller, int, int]]:
    """Greetings of processes: the connection, the process's number and number of processes.

    A connection that sends anything else, such as a health check, is closed; so is a connection
    that sends no greeting within seconds, and the oldest when there are too many. `stack` owns the
    connections.

    Raises:
        TimeoutError: at the deadline.
    """
    pending: dict[socket.socket, _Caller] = {}  # the oldest first
    with selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)

        def drop(caller: _Caller, *, close: bool = True) -> None:
            del pending[caller.connection]
            selector.unregister(caller.connection)
            if close:
                caller.connection.close()

        while (left_s := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(min(left_s, _GREETING_S)):
                if key.fileobj is server:
                    if len(pending) == _MAX_PENDING:
                        drop(next(iter(pending.values())))
                    try:
                        connection, (host, *_) = server.accept()
                    except OSError:  # the caller has hung up, or no more files can be opened
                        if pending:
                            drop(next(iter(pending.values())))
                        continue
                    stack.enter_context(connection)
                    connection.setblocking(False)
                    selector.register(connection, selectors.EVENT_READ)
                    pending[connection] = _Caller(connection, host)
                elif caller := pending.get(key.fileobj):  # type: ignore[call-overload]
                    piece = b""  # the caller has hung up
                    with contextlib.suppress(OSError):
                        piece = caller.connection.recv(_MAX_GREETING_BYTES)
                    caller.received += piece
                    ended = not piece or caller.received.endswith(b"\n")
                    if ended or len(caller.received) > _MAX_GREETING_BYTES:
                        numbers = _parse_greeting(caller.received)
                        drop(caller, close=numbers is None)
                        if numbers:
                            yield caller, *numbers
            oldest = time.monotonic() - _GREETING_S
            for caller in [caller for caller in pending.values() if caller.since < oldest]:
                drop(caller)
    raise TimeoutError


def _is_closed(connection: socket.socket | None) -> bool:
    """Whether there is no connection, or the process, which sends nothing now, has closed it."""
    try:
        return connection is None or not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _parse_greeting(received: bytes) -> tuple[int, int] | None:
    """The caller's number and number of processes; None if it isn't a process of a job."""
    try:
        greeting = json.loads(received)
        numbers = greeting["process"], greeting["of"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    # JSON has booleans, fractions and integers of any size.
    return numbers if all(type(n) is int and 0 <= n <= MAX_PROCESSES for n in numbers) else None


def _send_outcome(
    connections: Iterable[socket.socket], error: PeerError | ConfigError | None
) -> None:
    outcome = {"kind": type(error).__name__, "message": str(error)} if error else {}
    for connection in connections:
        connection.settimeout(5.0)
        with contextlib.suppress(OSError):  # the process has ended; the monitor will notice
            connection.sendall(json.dumps(outcome).encode() + b"\n")
    if error:
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.recv(1)  # if the others close first, the port is free at once


def _connect(
    address: tuple[str, int], process: int, processes: int, deadline: float, timeout_s: float
) -> socket.socket:
    """Connect to process 0, and wait for the outcome."""
    reason = "no answer"
    while (left_s := deadline - time.monotonic()) > 0:
        try:
            with contextlib.ExitStack() as stack:
                connection = stack.enter_context(socket.create_connection(address, timeout=left_s))
                greeting = json.dumps({"process": process, "of": processes})
                connection.sendall(greeting.encode() + b"\n")
                if outcome := _read_line(connection, deadline + _OUTCOME_DELAY_S):
                    if error := _parse_outcome(outcome, address):
                        raise error
                    stack.pop_all()
                    return connection
        except socket.gaierror:
            reason = "there is no host of that name"
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(_RETRY_S)
    raise PeerError(
        f"Process {process} of {processes} can't reach process 0 at {address[0]}:{address[1]}"
        f" within {timeout_s:g} s ({reason}); is it running, and the port open?"
    )


def _parse_outcome(line: bytes, address: tuple[str, int]) -> PeerError | ConfigError | None:
    """The error that process 0 reports; None if all processes are present."""
    try:
        outcome = json.loads(line)
        if outcome == {}:
            return None
        return _ERRORS[outcome["kind"]](" ".join(str(outcome["message"]).split()))
    except (ValueError, TypeError, KeyError, RecursionError):
        quote = line[:_MAX_QUOTE_BYTES].decode("ascii", "backslashreplace").strip()
        return ConfigError(
            f"The program at {address[0]}:{address[1]} isn't process 0: it answers {quote!r}. Give"
            " all processes a --coordinator whose host and port only process 0 uses."
        )


def _listen(port: int) -> socket.socket:
    """A server on all addresses of this host, IPv4 and, where it is available, IPv6.

    Raises:
        ConfigError: the port is in use, or this user may not listen on it.
    """
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=dual, backlog=4096)
    except OSError as error:
        raise ConfigError(
            f"Process 0 can't listen on port {port} ({error.strerror}); choose another port for"
            " --coordinator."
        ) from None


def _read_line(connection: socket.socket, deadline: float) -> bytes:
    """The next line; b"" if the other side closes the connection before the line ends.

    Raises:
        TimeoutError: at the deadline.
    """
    received = b""
    while b"\n" not in received and len(received) < _MAX_OUTCOME_BYTES:
        connection.settimeout(max(deadline - time.monotonic(), 1e-3))
        piece = connection.recv(_MAX_GREETING_BYTES)
        if not piece:
            return b""
        received += piece
    return received.partition(b"\n")[0]


def _ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers, of which there may be thousands, as ranges: "1, 3 … 7"."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1][1:] = [number]
        else:
            ranges.append([number])
    return ", ".join(" … ".join(map(str, each)) for each in ranges)
