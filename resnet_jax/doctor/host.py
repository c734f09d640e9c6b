"""Memory, disks, limits and clock of this machine."""

import ctypes
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from resnet_jax.doctor.finding import Finding, fail, ok, warn
from resnet_jax.errors import WriteError

GIB = 2**30

_LITTLE_MEMORY = 2 * GIB
# Docker's default of 64 MiB is less than two batches of 256 images of 224×224×3.
_LITTLE_SHARED_MEMORY = 256 * 2**20
_LITTLE_DISK, _NO_DISK = 5 * GIB, 500 * 2**20
_FEW_FILES = 1024  # a data set may lie in as many files, all of which are open at once
_ADJUSTED_S = 0.5
_TIME_ERROR = 5  # adjtimex(2): the clock isn't synchronised


def check_memory(*, root: Path = Path("/")) -> Iterator[Finding]:
    """Memory of the host, or of the control group if that allows less; `root` holds /proc, /sys."""
    if not (root / "proc/meminfo").exists():
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        yield ok("memory", f"{total / GIB:.1f} GiB; this system doesn't tell how much is free")
        return
    host = _fields(root / "proc/meminfo", unit=1024)
    total, available, of = host["MemTotal:"], host["MemAvailable:"], "this host"
    for limit, used, name in _control_groups(root):
        if limit < total:
            total, of = limit, name
        available = min(available, max(0, limit - used))
    found = f"{available / GIB:.1f} GiB of {total / GIB:.1f} GiB are free ({of})"
    if available < _LITTLE_MEMORY:
        yield warn(
            "memory",
            f"only {found}",
            "end other programs, or raise the limit; else the kernel may kill the run",
        )
    else:
        yield ok("memory", found)


def _fields(path: Path, *, unit: int = 1) -> dict[str, int]:
    """Name → number, as /proc/meminfo and memory.stat have them in lines."""
    pairs = (line.split() for line in path.read_text(encoding="ascii").splitlines())
    return {words[0]: int(words[1]) * unit for words in pairs if len(words) > 1}


def _control_groups(root: Path) -> Iterator[tuple[int, int, str]]:
    """Limit in bytes, bytes in use and name of each control group that this process is in.

    A group's ancestors bind it too. In a container the path in /proc may be the host's, and the
    group is what is mounted; so every folder from the path up to the mount is asked.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except FileNotFoundError:  # a kernel without control groups
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names = ("memory.max", "memory.current", "inactive_file")
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            mounts = [root / "sys/fs/cgroup/memory"]
        else:
            continue
        for mount in mounts:
            group = Path(path.lstrip("/"))
            for folder in (mount / group, *(mount / parent for parent in group.parents)):
                yield from _limit(folder, *names)


def _limit(
    folder: Path, limit_file: str, usage_file: str, reclaimable: str
) -> Iterator[tuple[int, int, str]]:
    try:
        limit = (folder / limit_file).read_text(encoding="ascii").strip()
        used = int((folder / usage_file).read_text(encoding="ascii"))
        cached = _fields(folder / "memory.stat").get(reclaimable, 0)
    except FileNotFoundError:  # the root group has no limit
        return
    if limit != "max":
        # What the kernel would drop first isn't really in use.
        yield int(limit), max(0, used - cached), f"control group limit, {folder / limit_file}"


def check_shared_memory(*, folder: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """Size of /dev/shm, through which worker processes hand over their batches."""
    if not folder.is_dir():
        yield ok("shared memory", f"this system has no {folder}")
        return
    total, _, free = shutil.disk_usage(folder)
    found = f"{free / GIB:.2f} GiB of {total / GIB:.2f} GiB are free in {folder}"
    if free < _LITTLE_SHARED_MEMORY:
        remedy = f"remove what lies in {folder}; in a container, start it with --shm-size=2g"
        yield warn("shared memory", f"only {found}", remedy)
    else:
        yield ok("shared memory", found)


def check_open_files() -> Iterator[Finding]:
    """How many files a process may have open."""
    import resource  # noqa: PLC0415 - there is none on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _FEW_FILES:
        count = "any number" if soft == resource.RLIM_INFINITY else f"{soft:,}"
        yield ok("open files", f"{count} at once")
        return
    goal = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if goal > soft:
        remedy = f"ulimit -n {goal}"
    else:
        remedy = "have the hard limit raised, in /etc/security/limits.conf or by the container"
    yield warn("open files", f"only {soft:,} at once, at most {hard:,}", remedy)


class Clocks(NamedTuple):
    """Both clocks at one moment, in seconds."""

    wall: float
    monotonic: float

    @classmethod
    def read(cls) -> "Clocks":
        """Read both clocks."""
        return cls(time.time(), time.monotonic())


def kernel_clock_state() -> int | None:
    """What adjtimex(2) returns, which 5 (TIME_ERROR) is for a clock that isn't synchronised.

    None where there is no such call or it isn't allowed.
    """
    try:
        adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
    except (AttributeError, OSError, TypeError):  # not Linux
        return None
    # All zeros: `modes` is 0, so nothing is set. The structure takes 208 bytes at most.
    state: int = adjtimex(ctypes.create_string_buffer(512))
    if state < 0:
        if ctypes.get_errno() in (errno.EPERM, errno.ENOSYS):
            return None
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return state


def check_clock(
    started: Clocks,
    *,
    package: Path,
    now: Callable[[], Clocks] = Clocks.read,
    kernel_state: Callable[[], int | None] = kernel_clock_state,
) -> Iterator[Finding]:
    """Whether the wall clock is plausible, steady since `started`, and synchronised.

    Steps are timed with the monotonic clock; file times, logs and certificates need the other.

    Args:
        started: the clocks a while ago.
        package: folder of files that can't be younger than the present.
        now: reads the clocks.
        kernel_state: as `kernel_clock_state`.
    """
    current = now()
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(current.wall))
    youngest = max(path.stat().st_mtime for path in package.rglob("*.py"))
    changed = (current.wall - started.wall) - (current.monotonic - started.monotonic)
    remedy = "set the clock: timedatectl set-ntp true"
    if current.wall < youngest - 86_400:
        installed = time.strftime("%Y-%m-%d", time.gmtime(youngest))
        yield warn("clock", f"{shown}, which is before {package} was made ({installed})", remedy)
    elif abs(changed) > _ADJUSTED_S:
        yield warn("clock", f"{shown}, which was just changed by {changed:+.1f} s", remedy)
    elif (state := kernel_state()) == _TIME_ERROR:
        yield warn("clock", f"{shown}, not synchronised, says the kernel (adjtimex)", remedy)
    else:
        told = "the kernel doesn't say if it is synchronised" if state is None else "synchronised"
        yield ok("clock", f"{shown}, {told}")


def nearest_existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists; a file or a dangling link exists too."""
    path = path.expanduser().absolute()
    while not os.path.lexists(path):
        path = path.parent
    return path


def check_disk(
    folders: Mapping[str, Path],
    *,
    free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
) -> Iterator[Finding]:
    """Free space for each of the folders, by what it is; one line per file system."""
    names: dict[int, list[str]] = {}
    free: dict[int, int] = {}
    for name, folder in folders.items():
        place = nearest_existing(folder)
        device = place.stat().st_dev
        names.setdefault(device, []).append(f"{name} ({folder})")
        free[device] = free_bytes(place)
    for device, together in names.items():
        found = f"{free[device] / GIB:.1f} GiB are free for {' and '.join(together)}"
        remedy = "make room there, or choose another folder"
        if free[device] < _NO_DISK:
            yield fail("disk", f"only {found}", remedy, error=WriteError)
        elif free[device] < _LITTLE_DISK:
            yield warn("disk", f"only {found}", remedy)
        else:
            yield ok("disk", found)
