"""The npz format: a zip archive of .npy files, one per array.

Python's zipfile and NumPy read it, without pickle. They accept files that this module refuses:
archives that claim to inflate to more than weights do, members that overlap or have other bytes
between them, names that lead out of the archive, one name twice, and types that networks don't use.
"""

import io
import re
import stat
import struct
import zipfile

import numpy as np
from numpy.lib import format as npy

from resnet_jax.weights.arrays import (
    BFLOAT16,
    DTYPES,
    MAX_FILE_BYTES,
    FormatError,
    byte_count,
    check_name,
    printable,
    quoted,
    to_native,
)

ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")  # of the first member, or of an empty archive
NPY_MAGIC = npy.MAGIC_PREFIX

_MAX_MEMBERS = 50_000
_MAX_NPY_HEADER = 10_000  # NumPy's own default
# Deflate reaches 1,000:1 on zeros; trained weights don't reach 2:1.
_FREE_BYTES, _MAX_RATIO = 2**28, 100

_LOCAL_HEADER_BYTES = 30
_DESCRIPTOR_BYTES = (12, 16, 20, 24)  # sizes and CRC after the data of a streamed member
_STREAMED = 0x8

_NPY_VERSIONS = ((1, 0), (2, 0), (3, 0))
_RAW_BFLOAT16 = np.dtype("V2")  # NumPy saves the bfloat16 of ml_dtypes as two raw bytes


def decode(data: bytes) -> dict[str, np.ndarray]:
    """Arrays of a whole file, by name.

    Raises:
        FormatError: the file is damaged, has members that aren't arrays of numbers, or claims to
            inflate to more than weights do.
    """
    archive = _open(data)
    if data[-22:-18] != b"PK\x05\x06" or data[-2:] != b"\0\0":
        raise _damaged("bytes follow after its end")
    members = sorted(archive.infolist(), key=lambda member: member.header_offset)
    names = set()
    for member in members:
        _check_member(member)
        if member.filename in names:
            raise _damaged(f"it has {quoted(member.filename)} twice")
        names.add(member.filename)
    total = sum(member.file_size for member in members)
    if total > MAX_FILE_BYTES or total > max(_FREE_BYTES, _MAX_RATIO * len(data)):
        raise FormatError(
            f"has {len(data):,} bytes that claim to inflate to {total:,}, which no trained weights"
            " do; get it from elsewhere."
        )
    _check_contiguous(data, members, archive.start_dir)
    return {
        member.filename.removesuffix(".npy"): _read_array(archive, member) for member in members
    }


def holds_pickle(data: bytes) -> bool:
    """Whether a zip archive is a file of PyTorch, or has another pickle as a member."""
    try:
        names = _open(data).namelist()
    except FormatError:
        return False
    return any(name.endswith((".pkl", ".pickle", ".pt", ".pth")) for name in names)


def _open(data: bytes) -> zipfile.ZipFile:
    if data.count(b"PK\x01\x02") > _MAX_MEMBERS:  # an upper bound, found without parsing
        raise _damaged(f"it has more than {_MAX_MEMBERS:,} members")
    try:
        return zipfile.ZipFile(io.BytesIO(data))
    except Exception as error:  # zipfile raises many types for damaged directories
        raise FormatError(
            f"isn't a sound zip archive, as .npz and PyTorch's files are ({_reason(error)})."
            " Download or copy it again."
        ) from None


def _check_member(member: zipfile.ZipInfo) -> None:
    """Check the directory entry of a member."""
    name, kind = member.filename, stat.S_IFMT(member.external_attr >> 16)
    parts = name.split("/")
    drive = re.fullmatch("[A-Za-z]:", parts[0])
    if member.orig_filename != name or "\\" in name or drive or {"", ".", ".."} & {*parts}:
        raise FormatError(
            f"has a member {quoted(member.orig_filename)}, a path that leads out of the archive; no"
            " honest program writes such a file. Don't use it."
        )
    if kind not in (0, stat.S_IFREG):
        raise FormatError(
            f"has a member {quoted(name)} that is a link or a device; no honest program writes"
            " such a file. Don't use it."
        )
    if not name.endswith(".npy"):
        raise FormatError(
            f"is a zip archive but no npz file: it holds {quoted(name)}. Weights are read from"
            " .safetensors and .npz files."
        )
    check_name(name.removesuffix(".npy"))
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise FormatError(
            f"has {quoted(name)} in a compression that NumPy doesn't write; save it by numpy.savez."
        )


def _check_contiguous(data: bytes, members: list[zipfile.ZipInfo], directory: int) -> None:
    """Check that the members fill the file from its first byte to the directory at `directory`.

    zipfile refuses overlapping members since Python 3.11.8 only, and never refuses other bytes
    between members, which another program may read.
    """
    ends = [*(member.header_offset for member in members[1:]), directory]
    position = 0
    for member, end in zip(members, ends, strict=False):  # an empty archive has one end too many
        try:  # the local header may have other extra fields than the directory
            lengths = struct.unpack_from("<2H", data, member.header_offset + 26)
        except struct.error:
            raise _damaged(f"{quoted(member.filename)} isn't where its directory says") from None
        start = member.header_offset + _LOCAL_HEADER_BYTES + sum(lengths)
        rest = end - (start + member.compress_size)
        streamed = member.flag_bits & _STREAMED and rest in _DESCRIPTOR_BYTES
        if member.header_offset != position or (rest and not streamed):
            raise _damaged(f"{quoted(member.filename)} overlaps another part, or isn't next to it")
        position = end
    if position != directory:
        raise _damaged("bytes lie before its directory")


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Read the array of a member, once its header is checked."""
    name = member.filename.removesuffix(".npy")
    try:
        with archive.open(member) as stream:
            header = io.BytesIO(stream.read(_MAX_NPY_HEADER))
        shape, dtype = _read_header(header, name)
        if byte_count(name, dtype, shape) != member.file_size - header.tell():
            raise _damaged(f"{quoted(name)} has more or fewer bytes than its shape needs")
        with archive.open(member) as stream:  # which checks the CRC at its end
            array = npy.read_array(stream, allow_pickle=False)
    except (FormatError, MemoryError):
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise many types for damaged members
        raise _damaged(f"{quoted(name)} can't be read ({_reason(error)})") from None
    return to_native(name, array.view(BFLOAT16) if dtype == _RAW_BFLOAT16 else array)


def _read_header(file: io.BytesIO, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type in the header of a .npy file."""
    try:
        version = npy.read_magic(file)
        # Version 3 is version 2 with names of fields in UTF-8; arrays of numbers have no fields.
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file, max_header_size=_MAX_NPY_HEADER)
    except Exception:  # of many types; Python's parser raises MemoryError for deep nesting
        version = None
    if version not in _NPY_VERSIONS:
        raise _damaged(f"{quoted(name)} has no header of a .npy file of version 1, 2 or 3")
    if dtype.kind == "O":
        raise FormatError(
            f"has Python objects in {quoted(name)}, which is a pickle that could run code; save"
            " the array as numbers."
        )
    if dtype != _RAW_BFLOAT16 and dtype.newbyteorder("<") not in DTYPES.values():
        raise FormatError(
            f"has {quoted(name)} of type {printable(repr(npy.dtype_to_descr(dtype)))}, which isn't"
            " supported; save it as floats, integers or booleans of at most 64 bits."
        )
    return shape, dtype


def _reason(error: BaseException) -> str:
    return printable(str(error) or type(error).__name__)


def _damaged(reason: str) -> FormatError:
    return FormatError(f"isn't a sound npz file: {reason}. Download or copy it again.")
