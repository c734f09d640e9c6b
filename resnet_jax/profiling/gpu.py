"""GPUs as targets of XLA's GPU compiler, which needs a description of the GPU, but no GPU.

The compiler is part of JAX's CUDA plugin, two wheels that any Linux host can have (the extra
[gpu-compile]). It needs neither CUDA's libraries nor a driver. Algorithms aren't tuned without the
GPU, so that kernels are those of the defaults.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any, ClassVar

from resnet_jax.errors import UsageError
from resnet_jax.profiling.interconnect import Path
from resnet_jax.utils.distribution import install_hint, is_same_release

EXTRA = "gpu-compile"

_NODE = 8  # GPUs that NVLink joins in a server
_PREALLOCATED = 0.75  # of its memory: what JAX takes, unless XLA_PYTHON_CLIENT_MEM_FRACTION says

# Seconds of a tree of NCCL in its protocol for small messages: of a collective, of one step over
# NVLink, and of one over the network (github.com/NVIDIA/nccl, src/graph/tuning.cc).
_START_S, _NVLINK_S, _NETWORK_S = 4.4e-6, 0.52e-6, 5.0e-6


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU: data sheet, and the numbers that the compiler asks for.

    Attributes:
        name: as in the name of a topology.
        kind: JAX's `device_kind`.
        hbm_gb_per_s: bandwidth of the memory, 10⁹ bytes per second.
        bf16_tflop_per_s: peak without sparsity, 10¹² operations per second.
        nvlink_gb_per_s: bandwidth of NVLink to the other GPUs of a node, in one direction.
        network_gb_per_s: bandwidth of a GPU's share of the network adapters, in one direction.
        capability: CUDA's compute capability, (major, minor).
        multiprocessors: number of streaming multiprocessors.
        fpus: float32 units of a multiprocessor.
        clock_ghz: highest clock.
        memory_bytes: size of the memory.
        l2_bytes: size of the second-level cache.
        shared_bytes: shared memory of a multiprocessor; a block can have 1 KiB less.
    """

    name: str
    kind: str
    hbm_gb_per_s: float
    bf16_tflop_per_s: float
    nvlink_gb_per_s: float
    network_gb_per_s: float
    capability: tuple[int, int]
    multiprocessors: int
    fpus: int
    clock_ghz: float
    memory_bytes: int
    l2_bytes: int
    shared_bytes: int

    devices: ClassVar[int] = 1
    unit: ClassVar[str] = "GPU"
    slices: ClassVar[tuple[str, ...]] = ("8", "1", "4x8")

    @property
    def smallest(self) -> str:
        """A full node, such as "h200:8"."""
        return f"{self.name}:{self.slices[0]}"

    @property
    def limit_gib(self) -> float:
        """Memory that JAX gives to programs."""
        return _PREALLOCATED * self.memory_bytes / 2**30

    def path(self, shape: Sequence[int], group_size: int, devices: int) -> Path:
        """The path of a collective among `group_size` GPUs, in nodes of `shape[-1]` GPUs.

        In a node, NVLink bounds it. Over several nodes NCCL has a ring for each network adapter, so
        that a GPU's bandwidth is the smaller of NVLink's and its node's network. `devices` isn't
        used; `tpu.Chip.path` needs it.
        """
        local = min(group_size, shape[-1])
        nodes = math.ceil(group_size / shape[-1])
        bandwidth = self.nvlink_gb_per_s
        if nodes > 1:
            bandwidth = min(bandwidth, local * self.network_gb_per_s)
        latency = (local - 1) * _NVLINK_S + math.ceil(math.log2(nodes)) * _NETWORK_S
        neighbour = self.nvlink_gb_per_s if nodes == 1 else self.network_gb_per_s
        return Path(_START_S, latency, bandwidth * 1e9, neighbour * 1e9)

    def target_config(self) -> str:
        """The text of XLA's message `stream_executor.GpuTargetConfigProto`."""
        major, minor = self.capability
        numbers = {
            "threads_per_block_limit": 1024,
            "threads_per_warp": 32,
            "shared_memory_per_block": 49152,
            "shared_memory_per_core": self.shared_bytes,
            "shared_memory_per_block_optin": self.shared_bytes - 1024,
            "threads_per_core_limit": 2048,
            "core_count": self.multiprocessors,
            "fpus_per_core": self.fpus,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 65535,
            "block_dim_limit_z": 65535,
            "thread_dim_limit_x": 1024,
            "thread_dim_limit_y": 1024,
            "thread_dim_limit_z": 64,
            "registers_per_core_limit": 65536,
            "registers_per_block_limit": 65536,
            "memory_bandwidth": round(self.hbm_gb_per_s * 1e9),
            "device_memory_size": self.memory_bytes,
            "l2_cache_size": self.l2_bytes,
            "clock_rate_ghz": self.clock_ghz,
        }
        lines = [f"  {name}: {number}" for name, number in numbers.items()]
        return "\n".join(
            (
                "gpu_device_info {",
                *lines,
                f"  cuda_compute_capability {{ major: {major} minor: {minor} }}",
                '  device_vendor: "NVIDIA Corporation"',
                f'  name: "{self.kind}"',
                '  driver_version: "12.8.0"',
                '  runtime_version: "12.8.0"',
                '  compile_time_toolkit_version: "12.8.0"',
                '  dnn_version: "9.10.0"',
                "}",
                'platform_name: "CUDA"',
                "dnn_version_info { major: 9 minor: 10 patch: 0 }",
                f'device_description_str: "{self.kind}"',
            )
        )


# Bandwidths and peaks: NVIDIA's data sheets of the SXM modules and of DGX A100 (8 × 200 Gb/s), DGX
# H100, H200 and B200 (8 × 400 Gb/s), DGX B300 (8 × 800 Gb/s). The rest: OpenXLA's
# xla/backends/gpu/target_config/specs.
GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            "a100", "NVIDIA A100-SXM4-80GB", 2039, 312, 300, 25,
            (8, 0), 108, 64, 1.41, 85_100_068_864, 41_943_040, 167_936,
        ),
        Gpu(
            "h100", "NVIDIA H100 80GB HBM3", 3352, 989, 450, 50,
            (9, 0), 132, 128, 1.98, 84_942_979_072, 52_428_800, 233_472,
        ),
        Gpu(
            "h200", "NVIDIA H200", 4800, 989, 450, 50,
            (9, 0), 132, 128, 1.98, 151_397_597_184, 52_428_800, 233_472,
        ),
        Gpu(
            "b200", "NVIDIA B200", 7672, 2250, 900, 50,
            (10, 0), 148, 128, 1.965, 191_514_411_008, 132_644_864, 233_472,
        ),
        Gpu(
            "b300", "NVIDIA B300", 7936, 2250, 900, 100,
            (10, 3), 158, 128, 1.965, 297_021_865_984, 135_528_448, 233_472,
        ),
    )
}  # fmt: skip


def parse_shape(gpu: Gpu, layout: str) -> tuple[int, ...]:
    """The shape in "8" or "4x8": GPUs of one node, or nodes and GPUs of each.

    Raises:
        UsageError: it isn't such a shape.
    """
    name = f"{gpu.name}:{layout}"
    if not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3})?", layout):
        raise UsageError(
            f"--topology {name!r} isn't a shape of {gpu.name}; write the GPUs of one node, such as"
            f" {gpu.name}:8, or nodes and GPUs of each, such as {gpu.name}:4x8."
        )
    shape = tuple(map(int, layout.split("x")))
    if shape[-1] > _NODE:
        suggestion = f"{gpu.name}:{-(-math.prod(shape) // _NODE)}x{_NODE}"
        raise UsageError(
            f"--topology {name!r} has nodes of {shape[-1]} GPUs, but NVLink joins at most {_NODE};"
            f" use {suggestion}."
        )
    return shape


def prepare() -> None:
    """See that the compiler is there.

    Raises:
        UsageError: the plugin isn't installed, or is of another release than jaxlib.
    """
    plugin = installed_plugin()
    if plugin is None:
        raise UsageError(
            "XLA's GPU compiler isn't installed; it is part of JAX's CUDA plugin, two wheels that"
            f" any Linux host can have: {install_hint(EXTRA)}."
        )
    found, jaxlib = metadata.version(plugin), metadata.version("jaxlib")
    if not is_same_release(found, jaxlib):
        raise UsageError(
            f"{plugin} is {found}, but jaxlib is {jaxlib}, and JAX ignores a plugin of another"
            f" release: pip install '{plugin}=={jaxlib}'."
        )


def installed_plugin() -> str | None:
    """The distribution that has the compiler; None if it isn't installed."""
    for plugin in ("jax-cuda12-plugin", "jax-cuda13-plugin"):
        if importlib.util.find_spec(plugin.replace("-", "_")):
            return plugin
    return None


def describe_devices(gpu: Gpu, name: str, shape: Sequence[int]) -> Sequence[Any]:
    """Descriptions of the GPUs of a topology, which stand for them in a mesh.

    Raises:
        UsageError: the compiler refuses them.
    """
    from jax.errors import JaxRuntimeError  # noqa: PLC0415 - the environment must come before JAX
    from jax.experimental import topologies  # noqa: PLC0415

    nodes, local = (1, *shape)[-2:]
    try:
        with _without_complaints():
            topology = topologies.get_topology_desc(
                gpu.name,
                "cuda",
                target_config=gpu.target_config(),
                topology=f"{nodes}x1x{local}",
            )
    except (JaxRuntimeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"--topology {name!r}: XLA refuses it ({reason}).") from None
    return topology.devices


def load() -> None:
    """Import JAX, which loads the plugin, and keep its programs out of the cache.

    Without the GPU a program can't be read back.
    """
    with _without_complaints():
        import jax  # noqa: PLC0415 - the environment must come before JAX

        jax.devices()
        jax.config.update("jax_enable_compilation_cache", False)


@contextlib.contextmanager
def _without_complaints() -> Iterator[None]:
    """Drop standard error: while it is loaded, the plugin says that it finds no driver."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
