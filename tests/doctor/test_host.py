"""The machine: memory, shared memory, open files, disks, clock."""

import shutil
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from resnet_jax.doctor import host
from tests.doctor.helpers import only, touch

GIB = 2**30


@pytest.fixture
def machine(tmp_path):
    """A host with 64 GiB, of which 32 are free; control groups are to be added."""
    touch(
        tmp_path / "proc/meminfo",
        f"MemTotal: {64 * 2**20} kB\nMemFree: 9 kB\nMemAvailable: {32 * 2**20} kB\nHugePages: 0\n",
    )
    return tmp_path


def _group(folder: Path, version: int, *, limit: str, used: int, cached: int) -> None:
    names = {1: ("limit_in_bytes", "usage_in_bytes"), 2: ("max", "current")}[version]
    touch(folder / f"memory.{names[0]}", f"{limit}\n")
    touch(folder / f"memory.{names[1]}", f"{used}\n")
    field = {1: "total_inactive_file", 2: "inactive_file"}[version]
    touch(folder / "memory.stat", f"anon 1\n{field} {cached}\n")


def test_memory_of_a_host_without_limits(machine):
    one = only(host.check_memory(root=machine))
    assert one.message == "32.0 GiB of 64.0 GiB are free (this host)"
    touch(machine / "proc/self/cgroup", "0::/user/session\n")
    _group(machine / "sys/fs/cgroup/user/session", 2, limit="max", used=30 * GIB, cached=0)
    assert only(host.check_memory(root=machine)) == one


@pytest.mark.parametrize(
    ("version", "line", "folder"),
    [
        (2, "0::/kubepods/pod", "sys/fs/cgroup/kubepods/pod"),
        (2, "0::/kubepods/pod", "sys/fs/cgroup/kubepods"),  # the parent's limit binds too
        (2, "0::/", "sys/fs/cgroup"),  # in a container
        (1, "4:cpu,memory:/docker/1", "sys/fs/cgroup/memory/docker/1"),
        (1, "4:memory:/docker/1", "sys/fs/cgroup/memory"),  # the path is the host's
    ],
)
def test_memory_that_a_control_group_allows(version, line, folder, machine):
    touch(machine / "proc/self/cgroup", f"9:pids:/x\n{line}\n")
    _group(machine / folder, version, limit=str(8 * GIB), used=7 * GIB, cached=2 * GIB)
    one = only(host.check_memory(root=machine))
    assert one.status == "ok"
    assert one.message.startswith("3.0 GiB of 8.0 GiB are free (control group limit, ")
    _group(machine / folder, version, limit=str(8 * GIB), used=7 * GIB, cached=GIB // 2)
    assert only(host.check_memory(root=machine)).status == "warn"


def test_little_shared_memory_is_a_warning(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**26, 0, 2**26))
    one = only(host.check_shared_memory(folder=tmp_path))
    assert (one.status, "only 0.06 GiB of 0.06 GiB" in one.message) == ("warn", True)
    assert "--shm-size" in one.remedy


def test_few_open_files_are_a_warning(capsys, quick):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        one = only(host.check_open_files())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (one.status, "only 256 at once" in one.message) == ("warn", True)
    assert one.remedy == f"ulimit -n {min(hard, 65_536)}"
    assert only(host.check_open_files()).status == "ok"


@pytest.mark.parametrize(
    ("free", "status", "code"), [(6 * GIB, "ok", 0), (4 * GIB, "warn", 0), (2**28, "fail", 73)]
)
def test_little_disk_space(free, status, code, tmp_path):
    folders = {"workdir": tmp_path / "a" / "b", "cache": tmp_path}
    one = only(host.check_disk(folders, free_bytes=lambda _: free))  # one file system, one line
    assert (one.status, one.exit_code) == (status, code)
    assert f"workdir ({tmp_path / 'a' / 'b'}) and cache ({tmp_path})" in one.message


def test_the_clock(tmp_path):
    touch(tmp_path / "a.py")
    wall = time.time()

    def look(*, later=5.0, ran=5.0, start=wall, state=0):
        now = host.Clocks(start + later, 100 + ran)
        return only(
            host.check_clock(
                host.Clocks(start, 100.0),
                package=tmp_path,
                now=lambda: now,
                kernel_state=lambda: state,
            )
        )

    assert look().message.endswith("UTC, synchronised")
    assert look(state=None).message.endswith("doesn't say if it is synchronised")
    assert (look(state=5).status, "not synchronised" in look(state=5).message) == ("warn", True)
    assert "just changed by -3.0 s" in look(later=2.0).message
    assert (
        f"1970-01-01 00:00:05 UTC, which is before {tmp_path} was made" in look(start=0.0).message
    )
    assert {look(later=2.0).status, look(start=0.0).status} == {"warn"}


@pytest.mark.skipif(sys.platform != "linux", reason="adjtimex is Linux's")
def test_the_kernel_is_asked_about_its_clock():
    assert host.kernel_clock_state() in {None, *range(6)}
