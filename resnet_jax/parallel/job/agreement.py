"""What the processes of a job exchange: documents, flags, and whether they are consistent.

With a single process, nothing is exchanged.
"""

import collections
import contextlib
import itertools
import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from resnet_jax.errors import ConfigError, PeerError
from resnet_jax.parallel.mesh import batch_sharding, replicated

MAIN = 0
"""The process that writes what a run writes once."""

_PREPARATION_S = 24 * 3600
_preparations = itertools.count()


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == MAIN


def all_gather_object(document: Any) -> list[Any]:
    """The JSON-like documents of all processes, by process; every process must call this."""
    if jax.process_count() == 1:
        return [document]
    text = np.frombuffer(json.dumps(document).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(len(text), np.int32))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(text)] = text
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


def wait_for_all(name: str) -> None:
    """A barrier: return when every process has called this with the same name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


class ProcessFlags:
    """Flags that any process may set, known to all processes at the same step.

    An immediate answer would make the host wait for the devices. So the flags are sent along with
    one dispatch and read after the next: they cost nothing, and take effect one dispatch later.
    """

    def __init__(self, mesh: Mesh) -> None:
        """Combine flags on the devices of `mesh`."""
        self._any = jax.jit(lambda flags: flags.any(axis=0), out_shardings=replicated(mesh))
        self._mesh = mesh
        self._pending: jax.Array | None = None

    def any_process(self, *flags: bool) -> tuple[bool, ...]:
        """Send this process's flags, and return those that any process sent by the last call.

        Every process must call this after the same dispatches, with as many flags. The first call
        returns False for each. With a single process it returns `flags`.
        """
        if jax.process_count() == 1:
            return flags
        last = np.zeros(len(flags), bool) if self._pending is None else np.asarray(self._pending)
        sent = jax.make_array_from_callback(
            (self._mesh.size, len(flags)),
            batch_sharding(self._mesh),
            lambda index: np.tile(flags, (self._mesh.size, 1))[index],
        )
        self._pending = self._any(sent)
        return tuple(bool(flag) for flag in last)


@contextlib.contextmanager
def check_consistent(facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Prepare something in every process, and go on only if all processes succeed and agree.

    If one process failed alone, the others would wait for it in the first step for minutes. Each
    process raises its own error, or names the process that has failed.

    Args:
        facts: what must be equal in all processes, by name; JSON-like.

    Yields:
        A dictionary of the facts, to which more can be added.

    Raises:
        PeerError: another process has failed.
        ConfigError: the processes differ; the message says in which fact, and which process.
    """
    facts = dict(facts)
    if jax.process_count() == 1:
        yield facts
        return
    _check_device_counts()
    own: Exception | None = None
    try:
        yield facts
    except Exception as error:
        own = error
    failure = None if own is None else str(own) or type(own).__name__
    _wait_for_preparation()
    reports = all_gather_object({"host": socket.gethostname(), "error": failure, "facts": facts})
    if own:
        raise own
    for number, report in enumerate(reports):
        if report["error"]:
            raise PeerError(f"Process {number} ({report['host']}) has failed: {report['error']}")
    _check_equal(reports)


def _wait_for_preparation() -> None:
    """Wait for processes that prepare data or wait for a lock.

    Collectives on CPUs time out after half a minute, so this waits at a barrier of JAX's
    coordination service. The monitor notices a process that dies meanwhile.
    """
    from jax._src import distributed  # noqa: PLC0415 - JAX has no public name for it

    name = f"prepared {next(_preparations)}"
    client: Any = distributed.global_state.client
    client.wait_at_barrier(name, timeout_in_ms=_PREPARATION_S * 1000)


def _check_device_counts() -> None:
    """Check that all processes have as many devices, without which they can't exchange facts."""
    counts = collections.Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1 or len(counts) < jax.process_count():
        listed = ", ".join(f"{counts[i]} in process {i}" for i in range(jax.process_count()))
        raise ConfigError(
            f"Processes differ in their number of devices: {listed}. Nothing was trained; give"
            " each the same."
        )


def _check_equal(reports: list[dict[str, Any]]) -> None:
    main = reports[MAIN]
    for number, other in enumerate(reports):
        names = sorted(set(main["facts"]) | set(other["facts"]))
        different = [n for n in names if main["facts"].get(n) != other["facts"].get(n)]
        if different:
            name = different[0]
            more = f" They also differ in {', '.join(different[1:])}." if different[1:] else ""
            raise ConfigError(
                f"Processes differ in {name}: it is {main['facts'].get(name)!r} in process 0"
                f" ({main['host']}), and {other['facts'].get(name)!r} in process {number}"
                f" ({other['host']}).{more} Nothing was trained."
            )
