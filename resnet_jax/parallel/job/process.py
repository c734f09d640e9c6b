"""The processes of a job: how they find each other, agree, and stop together.

A job of one process needs nothing of this. In others each process runs the same program on the
devices of its host, and every array that a step works on lies on all of them.
"""

import collections
import contextlib
import dataclasses
import itertools
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from resnet_jax.errors import ConfigError, PeerError, ResnetJaxError, UsageError
from resnet_jax.parallel.job.monitor import LAST_S, LEAVE_S, SETTLE_S, PeerWatch
from resnet_jax.parallel.job.rendezvous import MOST_PROCESSES, call_roll
from resnet_jax.parallel.mesh import batch_sharding, replicated
from resnet_jax.utils.streams import briefly

_PATIENCE_S = 24 * 3600  # with processes that live and prepare something
_preparations = itertools.count()

# What launchers set for JAX; it reads the first and the last itself.
_ADDRESS, _COUNT, _RANK, _LOCAL = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
    "JAX_LOCAL_DEVICE_IDS",
)

MAIN = 0
"""The process that writes what there is once per run."""


@dataclasses.dataclass(frozen=True)
class Job:
    """How this process was started.

    Attributes:
        coordinator: HOST:PORT of process 0.
        processes: how many there are.
        process: number of this one.
        local_devices: numbers of the devices that it may use; None is all of its host's.
    """

    coordinator: str
    processes: int
    process: int
    local_devices: tuple[int, ...] | None = None


def find_job(
    *, coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> Job | None:
    """What was said, else what JAX's variables, and then SLURM, Open MPI, Kubernetes or a TPU say.

    Args:
        coordinator, processes, process: as given on the command line; each may be left out where
            the environment knows it: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID
            and JAX_LOCAL_DEVICE_IDS come before a scheduler's own variables.

    Returns:
        None if there is one process only.

    Raises:
        UsageError: something is missing, or impossible.
    """
    said = {"coordinator": coordinator, "num_processes": processes, "process_id": process}
    given = [f"--{name}" for name, value in said.items() if value is not None]
    given += [name for name in (_ADDRESS, _COUNT, _RANK) if os.environ.get(name)]
    coordinator = coordinator or os.environ.get(_ADDRESS)
    processes = _number(_COUNT) if processes is None else processes
    process = _number(_RANK) if process is None else process
    local = _numbers(_LOCAL)
    if processes is not None and not 1 <= processes <= MOST_PROCESSES:
        raise UsageError(f"--num_processes is {processes}; it must be in 1 … {MOST_PROCESSES}.")
    if processes == 1:
        return None  # whatever a cluster would say
    if None in (coordinator, processes, process, local):
        coordinator, processes, process, local = _ask_environment(
            coordinator, processes, process, local
        )
    if processes == 1 or not (given or processes):
        return None
    found = {"coordinator": coordinator, "num_processes": processes, "process_id": process}
    missing = [f"--{name}" for name, value in found.items() if value is None]
    if coordinator is None or processes is None or process is None:
        why = f"{' and '.join(given)} was given" if given else f"there are {processes} processes"
        raise UsageError(
            f"{' and '.join(missing)} is missing: {why}, and the environment doesn't tell."
            " For a process on its own say --num_processes=1."
        )
    if not 1 < processes <= MOST_PROCESSES:
        raise UsageError(
            f"The environment tells of {processes} processes; there can be {MOST_PROCESSES}."
            " For a process on its own say --num_processes=1."
        )
    if not 0 <= process < processes:
        raise UsageError(f"--process_id is {process}; it must be in 0 … {processes - 1}.")
    return Job(coordinator, processes, process, local)


def _numbers(variable: str) -> tuple[int, ...] | None:
    """Numbers, separated by commas, in an environment variable; None if it isn't set."""
    text = os.environ.get(variable)
    if not text:
        return None
    if not re.fullmatch(r"\d{1,18}(,\d{1,18})*", text, re.ASCII):
        raise UsageError(
            f"{variable} is {text[:80]!r}; it must be a number, or several, as in 0,1."
        )
    return tuple(map(int, text.split(",")))


def _number(variable: str) -> int | None:
    numbers = _numbers(variable)
    if numbers and len(numbers) > 1:
        raise UsageError(f"{variable} is {os.environ[variable][:80]!r}; it must be a number.")
    return numbers[0] if numbers else None


def _ask_environment(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    local: tuple[int, ...] | None,
) -> tuple[str | None, int | None, int | None, tuple[int, ...] | None]:
    """Fill in what JAX finds out about the cluster that this process runs in."""
    # JAX offers this as a part of `initialize` only, which starts connecting at once.
    from jax._src.clusters import ClusterEnv  # noqa: PLC0415

    # JAX reads Open MPI 4's variables, and only where Open MPI 4's own launcher has set them. For
    # Open MPI 5, JAX 0.12 asks mpi4py, even for what SLURM knows: the address of process 0.
    scheduler = None  # whichever JAX finds
    if processes is None and process is None and "OMPI_COMM_WORLD_SIZE" in os.environ:
        if "OMPI_MCA_orte_hnp_uri" not in os.environ and "SLURM_STEP_NODELIST" in os.environ:
            scheduler = "slurm"
        processes = _number("OMPI_COMM_WORLD_SIZE")
        process = _number("OMPI_COMM_WORLD_RANK")
        local = local or _numbers("OMPI_COMM_WORLD_LOCAL_RANK")  # as JAX does: a device for each
    try:
        found = ClusterEnv.auto_detect_unset_distributed_params(
            coordinator, processes, process, local, scheduler, 300
        )
    except Exception as error:  # whatever a metadata server or a scheduler's variables provoke
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"The cluster's description of this job can't be read ({reason}); give --coordinator,"
            " --num_processes and --process_id, or --num_processes=1 for a process on its own."
        ) from error
    coordinator, processes, process, ids = found
    return coordinator, processes, process, None if ids is None else tuple(ids)


def connect(
    job: Job | None, *, timeout_s: float = 300.0, end: Callable[[str], None]
) -> PeerWatch | None:
    """Connect this process with the others; to be called before JAX is used for anything.

    Args:
        job: from `find_job`; None does nothing.
        timeout_s: seconds to wait for the other processes, up to a day.
        end: ends this process if another one is lost; see `PeerWatch`.

    Returns:
        The watch over the others, to be left at the end; None without a job.

    Raises:
        UsageError: `timeout_s` is no such number.
        PeerError: another process isn't there in time.
        ConfigError: processes disagree about how many they are, or the port is in use.
    """
    if not 1 <= timeout_s <= _PATIENCE_S:
        raise UsageError(
            f"--coordinator_timeout_s is {timeout_s}; it must be in 1 … {_PATIENCE_S:,} seconds."
        )
    if job is None:
        return None
    lines = call_roll(
        job.coordinator, process=job.process, processes=job.processes, timeout_s=timeout_s
    )
    watch = PeerWatch(job.process, lines, end)
    # Our own handling of signals serves every kind of job; JAX's would replace it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            job.coordinator,
            job.processes,
            job.process,
            local_device_ids=job.local_devices,
            initialization_timeout=max(10, int(timeout_s)),
            # Ours notice who is lost or silent, and end the rest in order; JAX would abort it.
            heartbeat_timeout_seconds=_PATIENCE_S,
        )
    except BaseException as error:
        watch.leave(str(error) or type(error).__name__)
        raise
    return watch


@contextlib.contextmanager
def member_of(job: Job | None, *, timeout_s: float, end: Callable[[str], None]) -> Iterator[None]:
    """Do something as a process of `job`: connected, and not longer than all of the others.

    The arguments and errors are those of `connect`. What is raised inside ends the other
    processes too; if it was another one's end that raised it, `end` is what happens.
    """
    watch = connect(job, timeout_s=timeout_s, end=end)
    if watch is None:
        yield
        return
    try:
        yield
    except BaseException as error:
        # Where another process is gone, communication fails here with a sentence about sockets.
        if not isinstance(error, ResnetJaxError) and watch.has_lost(SETTLE_S):
            threading.Event().wait()  # until the watch has ended this process
        watch.leave(str(error) or type(error).__name__)
        raise
    watch.leave(None)


def disconnect() -> None:
    """Take leave of JAX's connection, if the other processes do so too within seconds.

    The end of a process would do it as well, but wait for minutes, and then be a crash. Process 0
    returns when the others have had the time to end.
    """
    from jax._src import distributed  # noqa: PLC0415 - JAX has no public name for this

    if not jax.distributed.is_initialized():
        return
    timeout_s = LAST_S if distributed.global_state.process_id == MAIN else LEAVE_S
    briefly(jax.distributed.shutdown, timeout_s=timeout_s)


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == MAIN


@contextlib.contextmanager
def failing_together(about: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Prepare something in every process, and go on only if all succeed and agree.

    Where one process fails, the others would wait for it in the first step for minutes. Each
    raises its own error, or says whose it was.

    Args:
        about: what must be equal in all processes, by name; JSON-like.

    Yields:
        A dictionary for more of that.

    Raises:
        PeerError: another process has failed.
        ConfigError: processes differ; says in what, and which.
    """
    found = dict(about)
    if jax.process_count() == 1:
        yield found
        return
    _check_device_counts()
    mine: Exception | None = None
    try:
        yield found
    except Exception as error:
        mine = error
    told = None if mine is None else str(mine) or type(mine).__name__
    _wait_for_slow_ones()
    heard = exchange({"host": socket.gethostname(), "error": told, "found": found})
    if mine:
        raise mine
    for number, other in enumerate(heard):
        if other["error"]:
            raise PeerError(f"Process {number} ({other['host']}) has failed: {other['error']}")
    _check_agreement(heard)


def _wait_for_slow_ones() -> None:
    """Wait for processes that prepare data, or for a lock.

    Collectives of CPUs give up after half a minute. A process that dies meanwhile is noticed by
    the watch.
    """
    from jax._src import distributed  # noqa: PLC0415 - JAX has no public name for this

    name = f"prepared {next(_preparations)}"
    client: Any = distributed.global_state.client
    client.wait_at_barrier(name, timeout_in_ms=_PATIENCE_S * 1000)


def _check_device_counts() -> None:
    """Refuse processes with different numbers of devices, which couldn't even compare the rest."""
    counts = collections.Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1 or len(counts) < jax.process_count():
        listed = ", ".join(f"{counts[i]} in process {i}" for i in range(jax.process_count()))
        raise ConfigError(
            f"Processes differ in their number of devices: {listed}. Nothing was trained; give"
            " each the same."
        )


def _check_agreement(heard: list[dict[str, Any]]) -> None:
    main = heard[MAIN]
    for number, other in enumerate(heard):
        names = sorted(set(main["found"]) | set(other["found"]))
        different = [n for n in names if main["found"].get(n) != other["found"].get(n)]
        if different:
            name = different[0]
            more = f" So do {', '.join(different[1:])}." if different[1:] else ""
            raise ConfigError(
                f"Processes differ in {name}: it is {main['found'].get(name)!r} in process 0"
                f" ({main['host']}), and {other['found'].get(name)!r} in process {number}"
                f" ({other['host']}).{more} Nothing was trained."
            )


def exchange(document: Any) -> list[Any]:
    """The JSON-like documents of all processes, by number; each of them calls this."""
    if jax.process_count() == 1:
        return [document]
    text = np.frombuffer(json.dumps(document).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(len(text), np.int32))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(text)] = text
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


class Vote:
    """What any process has to say, known to all of them at the same step.

    Asking would make the host wait for the devices, and they for it. So a vote is sent along with
    one dispatch and read after the next: it costs nothing, and takes effect one dispatch later.
    """

    def __init__(self, mesh: Mesh) -> None:
        """Count on the devices of `mesh`."""
        self._any = jax.jit(lambda votes: votes.any(axis=0), out_shardings=replicated(mesh))
        self._mesh = mesh
        self._pending: jax.Array | None = None

    def cast(self, *wishes: bool) -> tuple[bool, ...]:
        """Send this process's wishes along; return which of them any had in the last vote.

        Every process must call it after the same dispatches. With a single one the wishes are the
        outcome.
        """
        if jax.process_count() == 1:
            return wishes
        last = np.zeros(len(wishes), bool) if self._pending is None else np.asarray(self._pending)
        votes = jax.make_array_from_callback(
            (self._mesh.size, len(wishes)),
            batch_sharding(self._mesh),
            lambda part: np.tile(wishes, (self._mesh.size, 1))[part],
        )
        self._pending = self._any(votes)
        return tuple(bool(outcome) for outcome in last)


def wait_for_all(what: str) -> None:
    """Return when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
