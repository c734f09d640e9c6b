"""Limits of weight files of any format: names, types, shapes and sizes."""

import math
from collections.abc import Sequence

import ml_dtypes
import numpy as np

MAX_FILE_BYTES = 2**34
"""Four times the size of the largest published residual network (BiT R152x4, 3.7 GB)."""

MAX_HEADER_BYTES = 2**22
"""Enough for 30,000 tensors; a ResNet-1202 has 7,200. Parsing JSON of this size takes 150 MB."""

_MAX_NAME = 256
_MAX_SHOWN = 3  # entries of a list in a message
_MAX_RANK = 32
_MAX_ARRAY_BYTES = 2**62  # NumPy counts bytes in 63 bits, without dimensions of size 0

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
"""The types that are read and written, by their names in safetensors."""


class FormatError(Exception):
    """A file can't be used. The message continues a sentence that begins with the file's name."""


def printable(text: str, *, longest: int = 160) -> str:
    """Untrusted text as part of one line, without control characters."""
    line = "".join(c if c.isprintable() else "?" for c in text[: longest + 1])
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def quoted(name: str) -> str:
    """An untrusted name, quoted and shortened for a message."""
    return repr(name if len(name) <= 80 else f"{name[:79]}…")


def some(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are, for a message."""
    more = len(names) - _MAX_SHOWN
    return ", ".join(names[:_MAX_SHOWN]) + (f" and {more} more" if more > 0 else "")


def check_name(name: str) -> None:
    """Check that an array's name isn't empty, is short and has no control characters.

    Raises:
        FormatError: the name isn't valid.
    """
    if not name or len(name) > _MAX_NAME or not name.isprintable():
        raise FormatError(
            f"has the array name {quoted(name)}; names have 1 to {_MAX_NAME} printable characters."
        )


def byte_count(name: str, dtype: np.dtype, shape: Sequence[int]) -> int:
    """Number of bytes of an array.

    Raises:
        FormatError: NumPy can't hold an array of this shape.
    """
    possible = math.prod(max(size, 1) for size in shape) * dtype.itemsize
    if len(shape) > _MAX_RANK or min(shape, default=0) < 0 or possible > _MAX_ARRAY_BYTES:
        sizes = printable("×".join(map(str, shape[:8])))
        raise FormatError(f"claims that {quoted(name)} has the shape {sizes}, which can't be.")
    return math.prod(shape) * dtype.itemsize


def to_native(name: str, array: np.ndarray) -> np.ndarray:
    """The array in native byte order and C order; a copy only where its memory differs.

    Args:
        name: of the array, for messages.
        array: as a file holds it.

    Raises:
        FormatError: a boolean is neither 0 nor 1; NumPy's operations aren't defined for it.
    """
    if array.dtype.kind == "b" and (array.view(np.uint8) > 1).any():
        raise FormatError(f"has booleans in {quoted(name)} that are neither 0 nor 1.")
    native = array.dtype if array.dtype == BFLOAT16 else array.dtype.newbyteorder("=")
    return array.astype(native, order="C", copy=False)
