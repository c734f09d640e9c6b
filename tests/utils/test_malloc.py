"""Freed memory stays with the process on a CPU, and returns to the system otherwise."""

import importlib.util
import os
import platform
import subprocess
import sys

import pytest

from resnet_jax.utils import malloc

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc can be told how to get memory"
)

_STEPS = """
import resource, sys
import numpy as np
from resnet_jax.utils.malloc import configure_malloc

def held():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

configure_malloc()
before = held()
for step in range(11):
    if step == 1:
        began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(2**21) for _ in range(4)]  # 16 MiB each
    del arrays
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - began
print(faults * resource.getpagesize() / 2**20, (held() - before) / 2**20)
"""


@pytest.mark.parametrize(("platforms", "stays"), [("cpu", True), ("cuda", False)])
def test_freed_memory_stays_only_where_a_cpu_computes(platforms, stays):
    environment = {**os.environ, "JAX_PLATFORMS": platforms}
    done = subprocess.run(
        [sys.executable, "-c", _STEPS], env=environment, capture_output=True, text=True, check=True
    )
    cleared_mib, held_mib = map(float, done.stdout.split())
    if stays:
        assert cleared_mib < 5
        assert 60 < held_mib < 100
    else:
        assert held_mib < 5


@pytest.mark.parametrize(
    ("files", "modules", "cpu"),
    [
        ([], ["libtpu"], True),
        (["kfd"], [], True),  # the graphics of a desktop
        (["accel"], ["jax_plugins"], True),  # a folder of neural processors
        (["nvidia0"], ["jax_plugins"], False),
        (["accel0"], ["libtpu"], False),
    ],
)
def test_an_accelerator_is_a_device_and_what_uses_it(files, modules, cpu, tmp_path, monkeypatch):
    for name in files:
        (tmp_path / name).touch()
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(malloc, "Path", lambda name: tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in modules else None)
    assert malloc._on_cpu() == cpu
