"""The job that this process belongs to: detecting it, connecting to it, and leaving it.

In a job of several processes, each process runs the same program on the devices of its host, and
every array that a step computes with is spread over all of them.
"""

import contextlib
import dataclasses
import os
import re
import threading
from collections.abc import Callable, Iterator

import jax

from resnet_jax.errors import ResnetJaxError, UsageError
from resnet_jax.parallel.job.aborts import delay_aborts
from resnet_jax.parallel.job.agreement import MAIN
from resnet_jax.parallel.job.monitor import LAST_S, LEAVE_S, SETTLE_S, PeerMonitor
from resnet_jax.parallel.job.rendezvous import MAX_PROCESSES, rendezvous
from resnet_jax.utils.streams import run_with_timeout

_MAX_TIMEOUT_S = 24 * 3600

# What launchers set for JAX; JAX itself reads the first and the last.
_ADDRESS, _COUNT, _RANK, _LOCAL = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
    "JAX_LOCAL_DEVICE_IDS",
)


@dataclasses.dataclass(frozen=True)
class Job:
    """The place of this process in a job of several processes.

    Attributes:
        coordinator: HOST:PORT of process 0.
        processes: number of processes.
        process: number of this process.
        local_devices: numbers of the devices of this process; None is all devices of its host.
    """

    coordinator: str
    processes: int
    process: int
    local_devices: tuple[int, ...] | None = None


def detect_cluster(
    *, coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> Job | None:
    """Find the job of this process.

    The sources are, in this order: the arguments; JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES,
    JAX_PROCESS_ID and JAX_LOCAL_DEVICE_IDS; then what SLURM, Open MPI, Kubernetes or a TPU tells.

    Args:
        coordinator: HOST:PORT of process 0.
        processes: number of processes.
        process: number of this process.

    Returns:
        The job; None if there is a single process.

    Raises:
        UsageError: a value is missing or isn't valid.
    """
    arguments = {"coordinator": coordinator, "num_processes": processes, "process_id": process}
    given = [f"--{name}" for name, value in arguments.items() if value is not None]
    given += [name for name in (_ADDRESS, _COUNT, _RANK) if os.environ.get(name)]
    coordinator = coordinator or os.environ.get(_ADDRESS)
    processes = _integer(_COUNT) if processes is None else processes
    process = _integer(_RANK) if process is None else process
    local = _integers(_LOCAL)
    if processes is not None and not 1 <= processes <= MAX_PROCESSES:
        raise UsageError(f"--num_processes is {processes}; it must be in 1 … {MAX_PROCESSES}.")
    if processes == 1:
        return None  # even within a cluster
    if None in (coordinator, processes, process, local):
        coordinator, processes, process, local = _ask_cluster(
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
            " For a single process use --num_processes=1."
        )
    if not 1 < processes <= MAX_PROCESSES:
        raise UsageError(
            f"The environment tells of {processes} processes; there can be {MAX_PROCESSES}."
            " For a single process use --num_processes=1."
        )
    if not 0 <= process < processes:
        raise UsageError(f"--process_id is {process}; it must be in 0 … {processes - 1}.")
    return Job(coordinator, processes, process, local)


def _integers(variable: str) -> tuple[int, ...] | None:
    """Integers, separated by commas, in an environment variable; None if it isn't set."""
    text = os.environ.get(variable)
    if not text:
        return None
    if not re.fullmatch(r"\d{1,18}(,\d{1,18})*", text, re.ASCII):
        raise UsageError(
            f"{variable} is {text[:80]!r}; it must be a number, or several, as in 0,1."
        )
    return tuple(map(int, text.split(",")))


def _integer(variable: str) -> int | None:
    numbers = _integers(variable)
    if numbers and len(numbers) > 1:
        raise UsageError(f"{variable} is {os.environ[variable][:80]!r}; it must be a number.")
    return numbers[0] if numbers else None


def _ask_cluster(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    local: tuple[int, ...] | None,
) -> tuple[str | None, int | None, int | None, tuple[int, ...] | None]:
    """Fill in missing values by JAX's cluster detection."""
    # JAX offers this only as a part of `initialize`, which starts to connect at once.
    from jax._src.clusters import ClusterEnv  # noqa: PLC0415

    # JAX reads the variables of Open MPI 4, and only if Open MPI 4's own launcher has set them. For
    # Open MPI 5, JAX 0.12 asks mpi4py, even for the address of process 0, which SLURM knows.
    scheduler = None  # JAX detects it
    if processes is None and process is None and "OMPI_COMM_WORLD_SIZE" in os.environ:
        if "OMPI_MCA_orte_hnp_uri" not in os.environ and "SLURM_STEP_NODELIST" in os.environ:
            scheduler = "slurm"
        processes = _integer("OMPI_COMM_WORLD_SIZE")
        process = _integer("OMPI_COMM_WORLD_RANK")
        local = local or _integers("OMPI_COMM_WORLD_LOCAL_RANK")  # a device each, as in JAX
    try:
        found = ClusterEnv.auto_detect_unset_distributed_params(
            coordinator, processes, process, local, scheduler, 300
        )
    except Exception as error:  # of metadata servers and of invalid scheduler variables
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"The cluster's description of this job can't be read ({reason}); give --coordinator,"
            " --num_processes and --process_id, or --num_processes=1 for a single process."
        ) from error
    coordinator, processes, process, ids = found
    return coordinator, processes, process, None if ids is None else tuple(ids)


def connect(
    job: Job | None, *, timeout_s: float = 300.0, end: Callable[[str], None]
) -> PeerMonitor | None:
    """Connect this process with the others; call it before JAX initialises its devices.

    Args:
        job: from `detect_cluster`; None does nothing.
        timeout_s: seconds to wait for the other processes, at most a day.
        end: ends this process if another process is lost; see `PeerMonitor`.

    Returns:
        The monitor of the other processes, to be left at the end; None without a job.

    Raises:
        UsageError: `timeout_s` is out of range.
        PeerError: another process is missing.
        ConfigError: the processes disagree about their number, or the port is in use.
    """
    if not 1 <= timeout_s <= _MAX_TIMEOUT_S:
        raise UsageError(
            f"--coordinator_timeout_s is {timeout_s}; it must be in 1 … {_MAX_TIMEOUT_S:,} seconds."
        )
    if job is None:
        return None
    connections = rendezvous(
        job.coordinator, process=job.process, processes=job.processes, timeout_s=timeout_s
    )
    monitor = PeerMonitor(job.process, connections, end)
    delay_aborts()
    # `StopRequest` handles signals in every kind of job; JAX's service would replace its handlers.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            job.coordinator,
            job.processes,
            job.process,
            local_device_ids=job.local_devices,
            initialization_timeout=max(10, int(timeout_s)),
            # The monitor notices lost processes; JAX's heartbeat would abort this process.
            heartbeat_timeout_seconds=_MAX_TIMEOUT_S,
        )
    except BaseException as error:
        monitor.leave(str(error) or type(error).__name__)
        raise
    return monitor


@contextlib.contextmanager
def connected(job: Job | None, *, timeout_s: float, end: Callable[[str], None]) -> Iterator[None]:
    """Run the body as a process of `job`; the arguments and errors are those of `connect`.

    An exception inside ends the other processes too. If the end of another process has caused the
    exception, `end` is called instead.
    """
    monitor = connect(job, timeout_s=timeout_s, end=end)
    if monitor is None:
        yield
        return
    try:
        yield
    except BaseException as error:
        # If another process is gone, collectives fail here with an error about sockets.
        if not isinstance(error, ResnetJaxError) and monitor.has_lost(SETTLE_S):
            threading.Event().wait()  # until the monitor has ended this process
        monitor.leave(str(error) or type(error).__name__)
        raise
    monitor.leave(None)


def disconnect() -> None:
    """Shut down JAX's connection, if the other processes do so too within seconds.

    JAX would do it at the end of the process too, but wait for minutes, and then abort. Process 0
    returns when the others have had the time to end.
    """
    from jax._src import distributed  # noqa: PLC0415 - JAX has no public name for it

    if not jax.distributed.is_initialized():
        return
    timeout_s = LAST_S if distributed.global_state.process_id == MAIN else LEAVE_S
    run_with_timeout(jax.distributed.shutdown, timeout_s=timeout_s)
