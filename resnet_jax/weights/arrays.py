"""What a weight file may hold, whatever its format: names, types, shapes, and how much."""

import math
from collections.abc import Sequence
from typing import Literal

import ml_dtypes
import numpy as np

MAX_FILE_BYTES = 2**34
"""Four times the largest residual network that was published (BiT R152x4, 3.7 GB)."""

MAX_HEADER_BYTES = 2**22
"""Room for 30,000 tensors; a ResNet-1202 has 7,200. JSON of this size needs 150 MB at worst."""

_MAX_NAME = 256
_MAX_RANK = 32
_MAX_ARRAY_BYTES = 2**62  # NumPy counts bytes in 63 bits, and leaves out dimensions of size 0

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype(bool),
}
"""The types that are read and written, by safetensors' names for them."""


class FormatError(Exception):
    """What is wrong with a file: the end of a sentence that begins with the file's name."""


def printable(text: str, *, longest: int = 160) -> str:
    """A stranger's text as part of one line, which can't steer a terminal either."""
    line = "".join(c if c.isprintable() else "?" for c in text[: longest + 1])
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def quoted(name: str) -> str:
    """A stranger's name as part of one line."""
    return repr(name if len(name) <= 80 else f"{name[:79]}…")


def check_name(name: str) -> None:
    """Refuse a name that no parameter has: empty, endless or with control characters.

    Raises:
        FormatError: it is such a name.
    """
    if not name or len(name) > _MAX_NAME or not name.isprintable():
        raise FormatError(
            f"has the array name {quoted(name)}; names have 1 to {_MAX_NAME} printable characters."
        )


def byte_count(name: str, dtype: np.dtype, shape: Sequence[int]) -> int:
    """How many bytes an array has, once it's sure that NumPy can hold one of that shape.

    Raises:
        FormatError: it can't.
    """
    possible = math.prod(max(size, 1) for size in shape) * dtype.itemsize
    if len(shape) > _MAX_RANK or min(shape, default=0) < 0 or possible > _MAX_ARRAY_BYTES:
        sizes = printable("×".join(map(str, shape[:8])))
        raise FormatError(f"claims that {quoted(name)} has the shape {sizes}, which can't be.")
    return math.prod(shape) * dtype.itemsize


def make_array(
    name: str,
    data: bytearray | memoryview,
    dtype: np.dtype,
    shape: Sequence[int],
    *,
    order: Literal["C", "F"] = "C",
) -> np.ndarray:
    """An array of native byte order in rows (C order), with memory of its own if `data` has none.

    Args:
        name: for messages.
        data: exactly `byte_count` bytes; a bytearray becomes the array's memory.
        dtype: the type in the file.
        shape: of the array.
        order: in which `data` has the elements.

    Raises:
        FormatError: a boolean is neither 0 nor 1, with which NumPy's operations aren't defined.
    """
    if dtype.kind == "b" and (np.frombuffer(data, np.uint8) > 1).any():
        raise FormatError(f"has booleans in {quoted(name)} that are neither 0 nor 1.")
    array = np.frombuffer(data, dtype).reshape(shape, order=order)
    native = dtype if dtype == BFLOAT16 else dtype.newbyteorder("=")
    return array.astype(native, order="C", copy=isinstance(data, memoryview))
