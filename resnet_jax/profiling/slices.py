"""TPU slices and GPU nodes that needn't be there, as targets of XLA's compilers.

    slice_ = describe_slice("v5e:16x16")  # or "h200:8"
    mesh = make_mesh(devices=slice_.devices)
    compiled = jitted.lower(shapes).compile()

The shapes carry shardings of that mesh. Nothing can be run, but memory, operations and
communication of the compiled program can be read (`resnet_jax.profiling.hlo`).
"""

import dataclasses
import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

from resnet_jax.errors import UsageError, did_you_mean
from resnet_jax.profiling import gpu, tpu

GIB = 2**30

Accelerator = tpu.Chip | gpu.Gpu


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips of a TPU slice, or GPUs of one or several nodes.

    Attributes:
        name: such as "v5e:16x16" or "h200:4x8".
        chip: of which it consists.
        shape: chips along each axis of the torus; or nodes, if several, and GPUs of a node.
        devices: descriptions of the devices, which stand for them in a mesh.
    """

    name: str
    chip: Accelerator
    shape: tuple[int, ...]
    devices: Sequence[Any]

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(self.shape)


def parse_slice(name: str) -> tuple[Accelerator, tuple[int, ...]]:
    """The chip and the shape in a name such as "v5e:16x16" or "h200:8".

    Raises:
        UsageError: it isn't such a name.
    """
    kind, _, layout = name.partition(":")
    if kind in tpu.CHIPS:
        return tpu.CHIPS[kind], tpu.parse_shape(tpu.CHIPS[kind], layout)
    if kind in gpu.GPUS:
        return gpu.GPUS[kind], gpu.parse_shape(gpu.GPUS[kind], layout)
    known = [*tpu.CHIPS, *gpu.GPUS]
    raise UsageError(
        f"--topology {name!r} isn't of a known TPU ({', '.join(tpu.CHIPS)}) or GPU"
        f" ({', '.join(gpu.GPUS)}).{did_you_mean(kind, known)}"
    )


def smallest_slices() -> list[str]:
    """The smallest usual slice of each TPU that is to be had, and a full node of each GPU."""
    # The oldest TPU isn't to be had any more; it's known for comparison with published figures.
    slices = [chip.smallest for chip in tpu.CHIPS.values() if chip.name != "v3"]
    return slices + [chip.smallest for chip in gpu.GPUS.values()]


def compilable_slices() -> tuple[list[str], list[str]]:
    """The names of `smallest_slices` whose compiler is installed, a line for each missing compiler.

    Raises:
        UsageError: neither compiler is installed.
    """
    missing = []
    names = smallest_slices()
    for module, chips in ((tpu, tpu.CHIPS), (gpu, gpu.GPUS)):
        try:
            module.prepare()
        except UsageError as error:
            missing.append(str(error))
            names = [name for name in names if name.partition(":")[0] not in chips]
    if not names:
        raise UsageError(" ".join(missing))
    return names, missing


def prepare_environment(names: Iterable[str]) -> None:
    """Make this a process that uses no accelerator; must come before JAX is imported.

    Args:
        names: of the slices that programs will be compiled for.

    Raises:
        UsageError: a name isn't known, or a compiler isn't installed.
    """
    chips = [parse_slice(name)[0] for name in names]
    for chip in chips:
        _compiler(chip).prepare()
    os.environ["JAX_PLATFORMS"] = "cpu"
    if any(isinstance(chip, gpu.Gpu) for chip in chips):
        gpu.load()


def describe_slice(name: str) -> Slice:
    """The slice with that name, as a target of the compiler.

    Raises:
        UsageError: the compiler isn't installed, or knows no such slice.
    """
    chip, shape = parse_slice(name)
    compiler = _compiler(chip)
    compiler.prepare()
    return Slice(name, chip, shape, compiler.describe_devices(chip, name, shape))


def _compiler(chip: Accelerator) -> Any:
    """The module that compiles for a chip."""
    return tpu if isinstance(chip, tpu.Chip) else gpu
