"""The safetensors format: 8 bytes with the header's length, a header in JSON, the tensors' bytes.

https://huggingface.co/docs/safetensors/main/en/index#format describes it. The safetensors library
reads it, and refuses tensors that overlap, leave a gap or don't fill the file. The library (0.8)
accepts files that this module refuses: two tensors of one name (the later one wins), two metadata
of one name, unknown fields, names with control characters, shapes that NumPy can't hold, headers
of up to 100 MB, and booleans other than 0 and 1.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors

from resnet_jax.utils.json_objects import DuplicateKeyError, unique_keys
from resnet_jax.weights.arrays import (
    BFLOAT16,
    DTYPES,
    MAX_HEADER_BYTES,
    FormatError,
    byte_count,
    check_name,
    printable,
    quoted,
    to_native,
)

_METADATA = "__metadata__"
_FIELDS = {"dtype", "shape", "data_offsets"}


def looks_alike(data: bytes) -> bool:
    """Whether the file begins with 8 bytes and a JSON object; the header's length may be wrong."""
    return data[8:9] == b"{"


def header_length(data: bytes) -> int:
    """Length of the header in bytes, as the first 8 bytes claim."""
    return int(struct.unpack_from("<Q", data)[0])


def decode(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays of a whole file, by name, and its metadata.

    Raises:
        FormatError: the file is damaged, or has a type that networks don't use.
    """
    length = header_length(data)
    if length > MAX_HEADER_BYTES:
        raise _damaged(f"its header claims {length:,} bytes, of at most {MAX_HEADER_BYTES:,}")
    if length > len(data) - 8:
        raise _damaged(f"it ends within its header, after {len(data):,} bytes")
    try:
        # The library checks types and nesting while it parses, so it refuses hostile JSON early.
        tensors = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing: ")
        raise _damaged(printable(reason)) from None
    header = _header(data[8 : 8 + length])
    metadata = header.pop(_METADATA, None) or {}
    for name, fields in header.items():
        check_name(name)
        if set(fields) != _FIELDS:
            unknown = min(set(fields) - _FIELDS)
            raise _damaged(f"{quoted(name)} has a field {quoted(unknown)}")
        if fields["dtype"] not in DTYPES:
            raise FormatError(
                f"has {quoted(name)} of type {quoted(fields['dtype'])}, which isn't supported;"
                f" save it as one of {', '.join(DTYPES)}."
            )
        byte_count(name, DTYPES[fields["dtype"]], fields["shape"])
    arrays = {
        name: to_native(
            name, np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
        )
        for name, tensor in tensors
    }
    return arrays, metadata


def encode(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Iterator[Any]:
    """The bytes of a file in pieces; equal content gives equal bytes.

    The library's writer (0.8) isn't used: it orders metadata at random, and writes the elements of
    an array in Fortran order as if they were in C order.

    Raises:
        FormatError: a name, type or size that `decode` would refuse.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
        raise FormatError("can't hold metadata that aren't text.")
    header: dict[str, Any] = {_METADATA: dict(sorted(metadata.items()))} if metadata else {}
    position, ordered = 0, []
    # The widest types come first, so that every array is aligned to the size of its elements.
    for name in sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name)):
        array = arrays[name]
        check_name(name)
        dtype = array.dtype
        little = dtype if dtype == BFLOAT16 else dtype.newbyteorder("<")
        if name == _METADATA or little not in names:
            raise FormatError(
                f"can't hold an array {quoted(name)} of type {dtype}; there may be"
                f" {', '.join(DTYPES)}, under any other name than {_METADATA}."
            )
        end = position + byte_count(name, little, array.shape)
        header[name] = {
            "dtype": names[little],
            "shape": list(array.shape),
            "data_offsets": [position, end],
        }
        position = end
        ordered.append((array, little))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise FormatError(f"would have a header of {len(text):,} bytes; {MAX_HEADER_BYTES:,} fit.")
    yield struct.pack("<Q", len(text)) + text
    for array, little in ordered:
        yield np.asarray(array, little, order="C").reshape(-1).view(np.uint8).data


def _header(text: bytes) -> dict[str, Any]:
    """Parse the header, which the library has found to be an object of objects."""
    try:
        header = json.loads(text, object_pairs_hook=unique_keys)
    except DuplicateKeyError as error:
        raise _damaged(f"its header has {quoted(error.key)} twice") from None
    except (ValueError, RecursionError) as error:  # of fields that the library skips
        raise _damaged(printable(f"its header isn't plain JSON ({error})")) from None
    return dict(header)


def _damaged(reason: str) -> FormatError:
    return FormatError(f"isn't a sound safetensors file: {reason}. Download or copy it again.")
