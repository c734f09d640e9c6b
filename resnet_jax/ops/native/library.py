"""The compiled library of oneDNN's convolutions, and whether this process uses the library."""

import ctypes
import functools
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from resnet_jax.utils.compilation_cache import processor

SOURCE = Path(__file__).with_name("convolution.cc")
SOURCES = (SOURCE, *sorted(SOURCE.parent.glob("*.h")))
LIBRARY = SOURCE.with_suffix(".so")
CHOICE = "RESNET_JAX_NATIVE"
"""Environment variable: the path of a library to use instead of `LIBRARY`, or "0" for none."""

Kind = Literal["forward", "input_gradient", "kernel_gradient"]
KINDS: tuple[Kind, ...] = ("forward", "input_gradient", "kernel_gradient")
Shape = tuple[int, ...]

_NUMBERS = 25  # integers that describe a problem

logger = logging.getLogger(__name__)


class Problem(NamedTuple):
    """A convolution or one of its gradients, without its arrays.

    Attributes:
        kind: which of the three arrays is computed from the other two.
        bfloat16: whether the arrays are bfloat16; float32 otherwise.
        shapes: of images [n, h, w, ci], kernel [kh, kw, ci, co] and features [n, ho, wo, co].
        strides, dilation: along h and w.
        padding: zeros added ((above, below), (left, right)).
        has_bias, has_sum, relu: whether the features get a float32 bias [co], the sum with an
            array of their shape and type, and ReLU, in this order.
    """

    kind: Kind
    bfloat16: bool
    shapes: tuple[Shape, Shape, Shape]
    strides: Sequence[int]
    padding: Sequence[Sequence[int]]
    dilation: Sequence[int]
    has_bias: bool = False
    has_sum: bool = False
    relu: bool = False

    @property
    def place(self) -> int:
        """Which of the three arrays is computed."""
        return {"forward": 2, "input_gradient": 0, "kernel_gradient": 1}[self.kind]

    @property
    def result(self) -> Shape:
        """Shape of the array that is computed."""
        return self.shapes[self.place]

    def numbers(self) -> ctypes.Array[ctypes.c_int64]:
        """The problem as plan.h takes it."""
        (above, below), (left, right) = self.padding
        parts = (*self.shapes, self.strides, (above, below, left, right))
        first = KINDS.index(self.kind), self.bfloat16, self.has_bias, self.has_sum, self.relu
        flat = (n for part in parts for n in part)
        return (ctypes.c_int64 * _NUMBERS)(*first, *flat, *self.dilation)


class Library:
    """The functions of a compiled library.

    Raises:
        OSError: the file can't be loaded, for instance because oneDNN was removed.
    """

    def __init__(self, path: Path) -> None:
        # Threads that spin while they wait would take the cores from XLA's threads.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        self._functions = ctypes.CDLL(str(path.resolve()))
        self._functions.resnet_jax_describe_onednn.restype = ctypes.c_char_p

    def onednn(self) -> str:
        """Version and build of oneDNN, and the instruction set that it uses."""
        return self._functions.resnet_jax_describe_onednn().decode()

    def supports(self, problem: Problem) -> bool:
        """Whether oneDNN has a kernel for the problem that isn't known to be wrong."""
        return bool(self._functions.resnet_jax_supports(problem.numbers()))

    def attempt(
        self, problem: Problem, x: Any, kernel: Any, y: Any, bias: Any, *, threads: int = 0
    ) -> bool:
        """Compute one of the first three contiguous NumPy arrays in place; False if oneDNN fails.

        All memory that oneDNN has to write is filled with NaN first. For a sum, `y` is a summand.
        With `threads`, the problem is computed in the parts that XLA would have with so many
        threads, on this thread and the library's helpers.
        """
        pointers = (ctypes.c_void_p(array.ctypes.data) for array in (x, kernel, y, bias))
        parts = ctypes.c_int64(threads)
        return bool(self._functions.resnet_jax_try(problem.numbers(), parts, *pointers))

    def packed_bytes(self, problem: Problem) -> int:
        """Size of a kernel in oneDNN's layout for the problem; 0 if there is no such layout."""
        packed_bytes = self._functions.resnet_jax_packed_bytes
        packed_bytes.restype = ctypes.c_int64
        return int(packed_bytes(problem.numbers()))

    def handler(self, name: str) -> Any:
        """The XLA FFI handler of that name: a kind of problem, "pack" or "forward_packed"."""
        return getattr(self._functions, f"resnet_jax_{name}")


class State(NamedTuple):
    """Whether oneDNN's convolutions are used.

    Attributes:
        library: the library, if it is used.
        onednn: `Library.onednn`, if the library could be loaded.
        reason: why the library isn't used; "" if it is used.
        built: whether there is a library, or the environment variable names one.
    """

    library: Library | None
    onednn: str
    reason: str
    built: bool

    @property
    def name(self) -> str:
        """oneDNN's version and instruction set, for messages."""
        version, _, instructions = self.onednn.split()
        return f"oneDNN {version} ({instructions})"


@functools.cache
def state() -> State:
    """Whether this process uses the library; warn once if a built library isn't used."""
    found = find()
    if found.built and not found.library:
        logger.warning("Convolutions are XLA's, not oneDNN's: %s", found.reason)
    return found


def find() -> State:
    """Load the library if `resnet-jax build` built and checked it on this machine."""
    choice = os.environ.get(CHOICE, str(LIBRARY))
    path = Path(choice)
    if choice == "0":
        return State(None, "", f"{CHOICE} is 0", built=False)
    if not path.exists():
        reason = f"{path} isn't there; `resnet-jax build` makes it"
        return State(None, "", reason, built=CHOICE in os.environ)
    try:
        library = Library(path)
        onednn = library.onednn()
    except (OSError, AttributeError) as error:
        reason = f"{path} can't be loaded ({error}); run `resnet-jax build` again"
        return State(None, "", reason, built=True)
    if differences := _changed(path, onednn):
        reason = f"{path} wasn't checked with this {differences}; run `resnet-jax build` again"
        return State(None, onednn, reason, built=True)
    return State(library, onednn, "", built=True)


def describe(platform: str, devices: int) -> str:
    """Return the name of the implementation of convolutions for arrays split over devices.

    Args:
        platform: "cpu", for example.
        devices: number of devices that an array is split over: 1 where a device computes whole
            arrays, as with one device, fixed shards, or seeds of its own.
    """
    used = state() if platform == "cpu" and devices == 1 else None
    return used.name if used and used.library else "XLA"


def circumstances(path: Path, onednn: str) -> dict[str, str]:
    """Everything that the result of a check depends on, by name."""

    def digest(content: bytes) -> str:
        return hashlib.sha256(content).hexdigest()

    return {
        "library": digest(path.read_bytes()),
        "source": digest(b"".join(file.read_bytes() for file in SOURCES)),
        "oneDNN": onednn,
        "processor": digest(processor().encode()),
        "jaxlib": metadata.version("jaxlib"),
    }


def log_of(path: Path) -> Path:
    """Path of the file with the output of the library's build in the background."""
    return path.with_suffix(".log")


def record_of(path: Path) -> Path:
    """Path of the file with the circumstances in which a library passed its check."""
    return path.with_suffix(".json")


def _changed(path: Path, onednn: str) -> str:
    """Names of the circumstances that differ from those of the check; all without a check."""
    try:
        recorded = json.loads(record_of(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        recorded = None
    now = circumstances(path, onednn)
    before = recorded if isinstance(recorded, dict) else {}
    return ", ".join(name for name in now if before.get(name) != now[name])
