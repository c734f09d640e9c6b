"""A roll-call of the processes of a job, before JAX connects them.

JAX's own rendezvous ends a process by a C++ abort if another one is missing, and doesn't notice
that two processes count differently. So process 0 first waits for all others on the coordinator's
port, and each process learns in one sentence who is missing or disagrees. The port is free again
when JAX takes it over; the lines between process 0 and the others stay open
(`resnet_jax.parallel.job.monitor`).
"""

import contextlib
import errno
import json
import selectors
import socket
import time
from collections.abc import Iterator, Sequence

from resnet_jax.errors import ConfigError, PeerError
from resnet_jax.utils.files import allow_files

MOST_PROCESSES = 2**16
_LONGEST_LINE = 4096  # bytes
_LONGEST_ANSWER = 2**20  # bytes; it may list thousands of processes
_LONGEST_QUOTE = 80  # bytes of what a stranger says
_RETRY_S = 0.2
_LATER_S = 5.0  # than its time-out process 0 may answer
_MOST_CALLING = 256  # connections at a time that haven't said yet who they are
_CALLING_S = 10.0  # for which they may be silent; a process says it at once, and calls again
_SPARE_FILES = 32  # that a process needs beside a line to each other one
_REFUSALS: dict[str, type[PeerError] | type[ConfigError]] = {
    "PeerError": PeerError,
    "ConfigError": ConfigError,
}
_BUSY = (errno.EADDRINUSE, errno.EACCES)


def call_roll(
    coordinator: str, *, process: int, processes: int, timeout_s: float
) -> dict[int, socket.socket]:
    """Return when all processes of the job have called.

    Args:
        coordinator: HOST:PORT of process 0.
        process: number of this one.
        processes: how many there are.
        timeout_s: seconds to wait for the others.

    Returns:
        The open line to process 0, by its number; in process 0 those to all others.

    Raises:
        PeerError: some process isn't there in time; all that are get to know which.
        ConfigError: the address is none, its port is in use, or processes disagree about how many
            they are or have the same number, or something else answers there, or process 0 may
            open fewer files than there are processes.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(f"--coordinator is {coordinator!r}; it must be HOST:PORT.")
    address = (host.strip("[]"), int(port))
    deadline = time.monotonic() + timeout_s
    if process == 0:
        return _answer(address, processes, deadline, timeout_s)
    return {0: _call(address, process, processes, deadline, timeout_s)}


def _answer(
    address: tuple[str, int], processes: int, deadline: float, timeout_s: float
) -> dict[int, socket.socket]:
    """Wait for the calls of all others and tell them the outcome."""
    allow_files(processes + _SPARE_FILES, what=f"Process 0 of {processes}")
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(_listen(address[1]))
        except OSError as error:
            raise ConfigError(
                f"Process 0 can't listen on port {address[1]} ({error.strerror}); choose another"
                " port for --coordinator."
            ) from None
        present: dict[int, socket.socket] = {}
        refusal: PeerError | ConfigError | None = None
        try:
            for caller, where, number, claimed in _calls(server, stack, deadline):
                earlier = present.get(number)
                if claimed != processes:
                    refusal = ConfigError(
                        f"Process {number} ({where}) was started as one of {claimed}, process 0 as"
                        f" one of {processes}; start all of them with the same --num_processes."
                    )
                elif not 0 < number < processes or (earlier and not _has_hung_up(earlier)):
                    refusal = ConfigError(
                        f"There is more than one process {number} of {processes} (the second is on"
                        f" {where}); give each another --process_id."
                    )
                if refusal:
                    present[-1] = caller  # it gets to know as well
                    break
                present[number] = caller
                if len(present) == processes - 1:
                    for gone in [n for n, line in present.items() if _has_hung_up(line)]:
                        del present[gone]  # it may be started again
                if len(present) == processes - 1:
                    break
        except TimeoutError:
            missing = sorted(set(range(1, processes)) - set(present))
            refusal = PeerError(
                f"Of {processes} processes {_numbers(missing)} didn't call process 0 at"
                f" {address[0]}:{address[1]} within {timeout_s:g} s."
            )
        outcome = {"kind": type(refusal).__name__, "message": str(refusal)} if refusal else {}
        for caller in present.values():
            caller.settimeout(5.0)
            with contextlib.suppress(OSError):  # it has gone; the watch will miss it
                caller.sendall(json.dumps(outcome).encode() + b"\n")
        if refusal:
            for caller in present.values():
                with contextlib.suppress(OSError):
                    caller.recv(1)  # the caller hangs up first, so that the port is free at once
            raise refusal
        stack.pop_all()
        server.close()
    return present


def _calls(
    server: socket.socket, stack: contextlib.ExitStack, deadline: float
) -> Iterator[tuple[socket.socket, str, int, int]]:
    """Calls as they come: the connection, from where, the number, and of how many it thinks to be.

    Whoever says something else is a stranger, such as a health check; one that says nothing keeps
    nobody waiting, and is hung up on. The connections are left to `stack`.

    Raises:
        TimeoutError: at the deadline.
    """
    with selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        heard: dict[socket.socket, tuple[str, bytes, float]] = {}  # in the order of their calls

        def hang_up(caller: socket.socket) -> None:
            del heard[caller]
            selector.unregister(caller)
            caller.close()

        while (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(min(left, _CALLING_S)):
                if key.fileobj is server:
                    if len(heard) == _MOST_CALLING:
                        hang_up(next(iter(heard)))
                    try:
                        newcomer, (where, *_) = server.accept()
                    except OSError:  # it has gone already, or there is no file left for it
                        if heard:
                            hang_up(next(iter(heard)))
                        continue
                    stack.enter_context(newcomer)
                    newcomer.setblocking(False)
                    selector.register(newcomer, selectors.EVENT_READ)
                    heard[newcomer] = where, b"", time.monotonic()
                    continue
                caller: socket.socket = key.fileobj  # type: ignore[assignment]
                if caller not in heard:  # it was hung up on just now
                    continue
                where, earlier, began = heard[caller]
                said = earlier + _next_piece(caller)
                heard[caller] = where, said, began
                if said == earlier or said.endswith(b"\n") or len(said) > _LONGEST_LINE:
                    if call := _parse(said):
                        del heard[caller]
                        selector.unregister(caller)
                        yield caller, where, *call
                    else:
                        hang_up(caller)
            overdue = time.monotonic() - _CALLING_S
            for caller in [one for one, (*_, began) in heard.items() if began < overdue]:
                hang_up(caller)
    raise TimeoutError


def _next_piece(caller: socket.socket) -> bytes:
    """What has arrived; b"" if the other side has hung up."""
    try:
        return caller.recv(_LONGEST_LINE)
    except OSError:
        return b""


def _has_hung_up(caller: socket.socket) -> bool:
    """Whether a process that waits for the outcome, and has nothing to say meanwhile, is gone."""
    try:
        return not caller.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _parse(said: bytes) -> tuple[int, int] | None:
    """The caller's number, and how many it thinks there are; None for a stranger."""
    try:
        call = json.loads(said)
        numbers = call["process"], call["of"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    # JSON has truth values and fractions too, and numbers without end.
    return numbers if all(type(n) is int and 0 <= n <= MOST_PROCESSES for n in numbers) else None


def _call(
    address: tuple[str, int], process: int, processes: int, deadline: float, timeout_s: float
) -> socket.socket:
    """Call process 0 until it answers."""
    reason = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with contextlib.ExitStack() as stack:
                connection = stack.enter_context(socket.create_connection(address, timeout=left))
                call = json.dumps({"process": process, "of": processes}).encode() + b"\n"
                connection.sendall(call)
                if answer := _line(connection, deadline + _LATER_S):
                    if refusal := _refusal(answer, address):
                        raise refusal
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


def _refusal(answer: bytes, address: tuple[str, int]) -> PeerError | ConfigError | None:
    """What the answer to a call says is wrong; None for nothing."""
    try:
        outcome = json.loads(answer)
        if outcome == {}:
            return None
        return _REFUSALS[outcome["kind"]](str(outcome["message"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        said = answer[:_LONGEST_QUOTE].decode("ascii", "backslashreplace").strip()
        return ConfigError(
            f"At {address[0]}:{address[1]} something else than process 0 answers, with {said!r};"
            " give all processes the --coordinator of a host and port that are process 0's alone."
        )


def _listen(port: int) -> socket.socket:
    """A server on all addresses of this host, of IPv6 too where there is such a thing."""
    try:
        return socket.create_server(
            ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096
        )
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _BUSY:
            raise
        return socket.create_server(("", port), backlog=4096)


def _line(connection: socket.socket, deadline: float) -> bytes:
    """The next line that arrives, b"" if the other side hangs up before its end.

    Raises:
        TimeoutError: at the deadline.
    """
    received = b""
    while b"\n" not in received and len(received) < _LONGEST_ANSWER:
        connection.settimeout(max(deadline - time.monotonic(), 1e-3))
        piece = connection.recv(_LONGEST_LINE)
        if not piece:
            return b""
        received += piece
    return received.partition(b"\n")[0]


def _numbers(processes: Sequence[int]) -> str:
    """Numbers in order, of which there may be thousands: "1, 3 … 7"."""
    runs: list[list[int]] = []
    for number in processes:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join(" … ".join(map(str, run)) for run in runs)
