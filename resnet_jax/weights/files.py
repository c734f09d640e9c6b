"""Reading and writing weight files; no file can run code.

The content of a file decides its format, not its name. A file is read into memory before it is
parsed: with a memory map, a file that is truncated meanwhile would crash the process.
"""

import os
import pickletools
import shlex
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from resnet_jax.errors import DataError, WriteError
from resnet_jax.utils.files import NotRegularFileError, open_regular_file, replace_file
from resnet_jax.weights import npz_format, safetensors_format
from resnet_jax.weights.arrays import MAX_FILE_BYTES, FormatError

_OTHER_FORMATS = {  # magic bytes: what the file is and what to do
    npz_format.NPY_MAGIC: "is one NumPy array without a name. Save named ones by numpy.savez.",
    b"\x89HDF\r\n\x1a\n": "is an HDF5 file. Save its arrays by numpy.savez.",
    b"\x1f\x8b": "is compressed by gzip. Unpack it first.",
    b"BZh": "is compressed by bzip2. Unpack it first.",
    b"\xfd7zXZ\x00": "is compressed by xz. Unpack it first.",
    b"version https://git-lfs": "is a pointer of Git LFS. Fetch the file itself: git lfs pull.",
    b"<": "is a web page or XML. Download the file itself.",
}
_PICKLE_WINDOW = 2**12


class PickleFileError(DataError):
    """The file is a pickle, which could run code; `resnet-jax convert` may convert it."""


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All arrays of a .safetensors or .npz file, by name.

    Args:
        path: a file on this machine.

    Returns:
        Writable arrays in native byte order and C order.

    Raises:
        PickleFileError: the file is a pickle, such as PyTorch's .pt, .pth and .bin files.
        DataError: the file doesn't exist, has another format or is damaged.
    """
    return read_file(path)[0]


def read_file(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All arrays of a .safetensors or .npz file, and its metadata; a .npz file has none.

    Raises:
        DataError: as for `read_weights`.
    """
    return decode_weights(_read(path), os.fspath(path))


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata of a .safetensors file; a .npz file has none.

    Raises:
        DataError: as for `read_weights`; the arrays are checked too.
    """
    return read_file(path)[1]


def decode_weights(data: bytes, name: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Decode the bytes of a whole weight file.

    Args:
        data: content of the file.
        name: of the file, for messages.

    Returns:
        The arrays by name, and the metadata.

    Raises:
        DataError: as for `read_weights`.
    """
    try:
        if _is_safetensors(data):
            return safetensors_format.decode(data)
        if data.startswith(npz_format.ZIP_MAGICS) and not npz_format.holds_pickle(data):
            return npz_format.decode(data), {}
        raise _refusal(data, name)
    except FormatError as error:
        raise DataError(f"{name} {error}") from None
    except MemoryError:
        raise DataError(
            f"{name} doesn't fit into this machine's memory; it takes twice the {len(data):,} bytes"
            " of the file."
        ) from None


def write_weights(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a .safetensors file; equal content gives equal bytes.

    Args:
        path: a file on this machine. An existing file is replaced atomically.
        arrays: by name, of the types in `resnet_jax.weights.arrays.DTYPES`.
        metadata: texts to store with the arrays, such as their origin.

    Raises:
        DataError: the format can't hold a name, type or text; nothing was written.
        WriteError: the file can't be written; an existing file is intact.
    """
    try:
        replace_file(Path(path), safetensors_format.encode(arrays, metadata or {}))
    except FormatError as error:
        raise DataError(f"{os.fspath(path)} {error}") from None
    except OSError as error:
        raise WriteError(
            f"{os.fspath(path)} can't be written ({error.strerror or error}); an existing file is"
            " intact. Choose another path."
        ) from None


def _read(path: str | os.PathLike[str]) -> bytes:
    name = os.fspath(path)
    try:
        with open_regular_file(name) as file:
            before = os.fstat(file.fileno())
            if before.st_size > MAX_FILE_BYTES:
                raise DataError(
                    f"{name} has {before.st_size:,} bytes, more than weights have (at most"
                    f" {MAX_FILE_BYTES:,}). Check that it's the right file."
                )
            # One byte more, to notice a file that grows meanwhile.
            data = file.read(before.st_size + 1)
            after = os.fstat(file.fileno())
    except NotRegularFileError:
        raise DataError(f"{name} isn't a file of weights but a pipe or a device.") from None
    except OSError as error:
        raise DataError(f"{name} can't be read: {error.strerror or error}.") from None
    except MemoryError:
        raise DataError(f"{name} doesn't fit into this machine's memory.") from None
    if len(data) != before.st_size or before.st_mtime_ns != after.st_mtime_ns:
        raise DataError(f"{name} changed while it was read. Try again when it's complete.")
    return data


def _is_safetensors(data: bytes) -> bool:
    """Whether the file is a safetensors file, sound or damaged.

    This check comes before the one for pickles: a safetensors file whose header has 640 bytes
    begins like a pickle of protocol 2.
    """
    if not safetensors_format.looks_alike(data):
        return False
    sound = safetensors_format.header_length(data) <= len(data) - 8
    return sound or not (_is_pickle(data) or _other_format(data))


def _refusal(data: bytes, name: str) -> DataError:
    """The error for a file that is neither a safetensors nor an npz file."""
    stem, suffix = os.path.splitext(name)
    target = f"{stem}{'-converted' if suffix == '.safetensors' else ''}.safetensors"
    command = f"resnet-jax convert {shlex.quote(name)} {shlex.quote(target)}"
    if data.startswith(npz_format.ZIP_MAGICS) or _is_pickle(data):
        return PickleFileError(
            f"{name} is a pickle (of PyTorch, maybe), which could run code when it's read, so it"
            f" wasn't. Convert it once: {command}"
        )
    if data[257:262] == b"ustar":
        return DataError(
            f"{name} is a tar archive. Unpack it, and if PyTorch saved what is in it, convert that:"
            " resnet-jax convert IN.pth OUT.safetensors"
        )
    if not data:
        return DataError(f"{name} is empty. Download or copy it again.")
    advice = "is neither a safetensors nor an npz file. Check that it's the right one."
    return DataError(f"{name} {_other_format(data) or advice}")


def _other_format(data: bytes) -> str | None:
    """What a file of another known format is, and what to do."""
    found = (advice for magic, advice in _OTHER_FORMATS.items() if data.startswith(magic))
    return next(found, None)


def _is_pickle(data: bytes) -> bool:
    """Whether the file is a pickle; its opcodes are parsed, not executed.

    Protocols 2 to 5 have a magic number. Protocols 0 and 1 have none, so a file is taken for such a
    pickle if its opcodes are valid. Only the error message depends on the result.
    """
    if data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return True
    window, position = data[:_PICKLE_WINDOW], 0
    try:
        for operation, _, at in pickletools.genops(window):
            position = at or 0
            if operation.name == "STOP":
                return 0 < position == len(data) - 1
    except ValueError:  # an invalid opcode, maybe because the window ends
        pass
    return len(data) > len(window) and position > len(window) // 2
