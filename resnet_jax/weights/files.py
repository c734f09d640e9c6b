"""Weight files, read with suspicion: names and arrays come out, and nothing in a file is run.

A file is recognised by its content; its name says nothing. It is read whole before it's looked at:
a file that is replaced or cut short meanwhile can't pull memory away, as it can with memory maps.
"""

import os
import pickletools
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from resnet_jax.errors import DataError, WriteError
from resnet_jax.utils.files import replace_file
from resnet_jax.weights import npz_format, safetensors_format
from resnet_jax.weights.arrays import MAX_FILE_BYTES, FormatError

_OTHERS = {  # magic bytes, what such a file is and what to do
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
    """The file is a pickle, which could run code; `resnet-jax convert` may make weights of it."""


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All arrays of a .safetensors or .npz file, by name.

    Args:
        path: of a file on this machine.

    Returns:
        Arrays in memory of their own, writable, of native byte order and in rows.

    Raises:
        PickleFileError: it's a pickle: PyTorch's .pt, .pth and .bin files, .pkl.
        DataError: it isn't there, it's neither format, or it isn't sound.
    """
    return read_file(path)[0]


def read_file(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All arrays of a .safetensors or .npz file, and its metadata; a .npz has none.

    Raises:
        DataError: as for `read_weights`.
    """
    return decode_weights(_read(path), os.fspath(path))


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts that the writer of a .safetensors file put beside its arrays; a .npz has none.

    Raises:
        DataError: as for `read_weights`; all of the file is checked.
    """
    return read_file(path)[1]


def decode_weights(data: bytes, name: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the metadata in the bytes of a whole weight file.

    Args:
        data: all of the file.
        name: of the file, for messages.

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
    """Write a .safetensors file that `read_weights` reads; equal content gives equal bytes.

    Args:
        path: of a file on this machine; an existing one is replaced at once, when all is written.
        arrays: by name, of the types in `resnet_jax.weights.arrays.DTYPES`.
        metadata: texts to keep beside the arrays, such as where they come from.

    Raises:
        DataError: the format can't hold such a name, type or text; nothing was written.
        WriteError: the file can't be written; an existing one is intact.
    """
    try:
        replace_file(Path(path), safetensors_format.encode(arrays, metadata or {}))
    except FormatError as error:
        raise DataError(f"{os.fspath(path)} {error}") from None
    except OSError as error:
        raise WriteError(
            f"{os.fspath(path)} can't be written ({error.strerror or error}); what was there is"
            " intact. Choose another place."
        ) from None


def _read(path: str | os.PathLike[str]) -> bytes:
    name = os.fspath(path)
    try:
        # Without O_NONBLOCK a named pipe would be waited for.
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                raise DataError(f"{name} isn't a file of weights but a folder or a device.")
            if before.st_size > MAX_FILE_BYTES:
                raise DataError(
                    f"{name} has {before.st_size:,} bytes, more than weights have (at most"
                    f" {MAX_FILE_BYTES:,}). Check that it's the right file."
                )
            # One byte more, so that a file that grows meanwhile is noticed.
            data = file.read(before.st_size + 1)
            after = os.fstat(descriptor)
    except OSError as error:
        raise DataError(f"{name} can't be read: {error.strerror or error}.") from None
    except MemoryError:
        raise DataError(f"{name} doesn't fit into this machine's memory.") from None
    if len(data) != before.st_size or before.st_mtime_ns != after.st_mtime_ns:
        raise DataError(f"{name} changed while it was read. Try again when it's complete.")
    return data


def _is_safetensors(data: bytes) -> bool:
    """Whether the file is of this format, if only a damaged one.

    A header of 640 bytes makes a file begin like a pickle of protocol 2, so this comes first.
    """
    if not safetensors_format.looks_alike(data):
        return False
    sound = safetensors_format.header_length(data) <= len(data) - 8
    return sound or not (_is_pickle(data) or _other(data))


def _refusal(data: bytes, name: str) -> DataError:
    """What to say of a file that is neither format."""
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
    return DataError(f"{name} {_other(data) or advice}")


def _other(data: bytes) -> str | None:
    """What a file of a known other kind is, and what to do."""
    found = (advice for magic, advice in _OTHERS.items() if data.startswith(magic))
    return next(found, None)


def _is_pickle(data: bytes) -> bool:
    """Whether the file is a pickle; its operations are listed, and none is run.

    Protocols 2 to 5 say so. Files of protocols 0 and 1 begin with any operation: they are taken
    for pickles if their operations make sense. Only the message depends on it, not what is read.
    """
    if data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return True
    window, position = data[:_PICKLE_WINDOW], 0
    try:
        for operation, _, at in pickletools.genops(window):
            position = at or 0
            if operation.name == "STOP":
                return 0 < position == len(data) - 1
    except ValueError:  # no sense from here on, maybe because the window ends
        pass
    return len(data) > len(window) and position > len(window) // 2
