"""The npz format: a zip archive of .npy files, one per array.

https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html describes .npy. Python's
zipfile reads the archive's directory; everything else is checked and read here, because
`numpy.load` evaluates headers as Python literals and `zipfile` inflates more than a member claims.
"""

import io
import re
import stat
import struct
import zipfile
import zlib

import numpy as np

from resnet_jax.weights.arrays import (
    BFLOAT16,
    MAX_FILE_BYTES,
    FormatError,
    byte_count,
    check_name,
    make_array,
    printable,
    quoted,
)

ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")  # of the first member, or of an empty archive
NPY_MAGIC = b"\x93NUMPY"

_MAX_MEMBERS = 50_000
_MAX_NPY_HEADER = 10_000  # NumPy's own limit
# Deflate reaches 1,000:1, and does so on zeros; trained weights don't even get to 2:1.
_FREE_BYTES, _MAX_RATIO = 2**28, 100

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_DESCRIPTOR_SIZES = (12, 16, 20, 24)  # sizes and CRC after the data of a member that was streamed
_STREAMED, _UTF8 = 0x8, 0x800
_PLAIN_FLAGS = _STREAMED | _UTF8 | 0x6  # and how hard deflate tried; others are for encryption

_FIELD = r"""['"](\w+)['"]\s*:\s*('[^']*'|"[^"]*"|True|False|\([\d\s,]*\)|\[[^\]]*\])\s*"""
_HEADER = re.compile(rf"\{{\s*{_FIELD},\s*{_FIELD},\s*{_FIELD},?\s*\}}\s*", re.ASCII)
_SIZES = re.compile(r"\(\s*(\d{1,19}\s*(,\s*\d{1,19}\s*)*,?\s*)?\)", re.ASCII)
_DESCR = re.compile(r"['\"]([<>|=](?:f[248]|[iu][1248]|b1))['\"]")
# NumPy saves the bfloat16 of ml_dtypes as raw bytes, two per element; nothing else has such.
_BFLOAT16_DESCR = re.compile(r"['\"][<|]V2['\"]")


def decode(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a whole file by name.

    Raises:
        FormatError: the file isn't sound, has members that aren't arrays of numbers, or claims to
            inflate to more than weights do.
    """
    arrays = {}
    for info in members(data):
        name = info.filename.removesuffix(".npy")
        arrays[name] = _array(name, _content(data, info))
    return arrays


def members(data: bytes) -> list[zipfile.ZipInfo]:
    """The members of a zip archive in the order of their data, after the directory was checked.

    Raises:
        FormatError: the archive isn't sound or has other members than .npy files.
    """
    archive = _directory(data)
    if data[-22:-18] != b"PK\x05\x06" or data[-2:] != b"\0\0":
        raise _damaged("bytes follow after its end")
    infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    total, names = 0, set()
    for info in infos:
        _check_member(info)
        if info.filename in names:
            raise _damaged(f"it has {quoted(info.filename)} twice")
        names.add(info.filename)
        total += info.file_size
    if total > MAX_FILE_BYTES or total > max(_FREE_BYTES, _MAX_RATIO * len(data)):
        raise FormatError(
            f"has {len(data):,} bytes that claim to inflate to {total:,}, which no trained weights"
            " do; get it from elsewhere."
        )
    _check_tiling(data, infos, archive.start_dir)
    return infos


def holds_pickle(data: bytes) -> bool:
    """Whether a zip archive is one of PyTorch's, or has another pickle as a member."""
    try:
        names = _directory(data).namelist()
    except FormatError:
        return False
    return any(name.endswith((".pkl", ".pickle", ".pt", ".pth")) for name in names)


def _directory(data: bytes) -> zipfile.ZipFile:
    if data.count(b"PK\x01\x02") > _MAX_MEMBERS:  # an upper bound, found without parsing
        raise _damaged(f"it has more than {_MAX_MEMBERS:,} members")
    try:
        return zipfile.ZipFile(io.BytesIO(data))
    except Exception as error:  # of many kinds, for the directory is read without checks
        reason = printable(str(error) or type(error).__name__)
        raise FormatError(
            "isn't a sound zip archive, as .npz and PyTorch's files are"
            f" ({reason}). Download or copy it again."
        ) from None


def _check_member(info: zipfile.ZipInfo) -> None:
    """Refuse a member by what the directory says of it."""
    name, kind = info.filename, stat.S_IFMT(info.external_attr >> 16)
    parts = name.split("/")
    drive = re.fullmatch("[A-Za-z]:", parts[0])
    if info.orig_filename != name or "\\" in name or drive or {"", ".", ".."} & {*parts}:
        raise FormatError(
            f"has a member {quoted(info.orig_filename)}, a path that leads out of the archive; no"
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
    if info.flag_bits & ~_PLAIN_FLAGS:
        raise FormatError(
            f"has {quoted(name)} encrypted or packed otherwise than NumPy does; save it by"
            " numpy.savez."
        )
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise FormatError(
            f"has {quoted(name)} in a compression that NumPy doesn't write; save it by numpy.savez."
        )


def _check_tiling(data: bytes, infos: list[zipfile.ZipInfo], directory: int) -> None:
    """Refuse members that share bytes or have bytes between them.

    Members that overlap are how a small archive inflates to a huge one, and bytes that belong to
    no member are for another program to read.
    """
    position = 0
    limits = [*(info.header_offset for info in infos[1:]), directory]
    for info, limit in zip(infos, limits, strict=False):  # an empty archive has a limit too
        end = _data_start(data, info) + info.compress_size
        streamed = info.flag_bits & _STREAMED and limit - end in _DESCRIPTOR_SIZES
        if info.header_offset != position or (end != limit and not streamed):
            raise _damaged(f"{quoted(info.filename)} overlaps another part, or isn't next to it")
        position = limit
    if position != directory:
        raise _damaged("bytes lie before its directory")


def _data_start(data: bytes, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: after a second header, which must agree with the directory."""
    try:
        header = _LOCAL_HEADER.unpack_from(data, info.header_offset)
    except struct.error:
        header = (b"",) * 11
    magic, _, flags, method, *_, name_length, extra_length = header
    start = info.header_offset + _LOCAL_HEADER.size
    if magic != ZIP_MAGICS[0]:
        raise _damaged(f"{quoted(info.filename)} isn't where its directory says")
    name = data[start : start + name_length]
    expected = info.filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437")
    if (name, method, flags) != (expected, info.compress_type, info.flag_bits):
        raise _damaged(f"its two headers of {quoted(info.filename)} disagree")
    return int(start + name_length + extra_length)


def _content(data: bytes, info: zipfile.ZipInfo) -> memoryview:
    """A member's bytes, never more of them than it claims."""
    start = _data_start(data, info)
    packed = memoryview(data)[start : start + info.compress_size]
    if info.compress_type == zipfile.ZIP_STORED:
        content, complete = packed, True
    else:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            content = memoryview(inflate.decompress(packed, info.file_size + 1))
        except zlib.error as error:
            raise _damaged(f"{quoted(info.filename)} can't be inflated ({error})") from None
        complete = inflate.eof and not inflate.unused_data
    if not complete or len(content) != info.file_size:
        raise _damaged(f"{quoted(info.filename)} isn't as long as its directory says")
    if zlib.crc32(content) != info.CRC:
        raise _damaged(f"{quoted(info.filename)} doesn't have its checksum")
    return content


def _array(name: str, content: memoryview) -> np.ndarray:
    """The array in the bytes of a .npy file."""
    wide = bytes(content[6:8]) in (b"\x02\x00", b"\x03\x00")
    start = 12 if wide else 10
    if content[:6] != NPY_MAGIC or (not wide and content[6:8] != b"\x01\x00"):
        raise _damaged(f"{quoted(name)} isn't a .npy file of version 1, 2 or 3")
    end = start + int.from_bytes(content[8:start], "little")
    if end > min(len(content), _MAX_NPY_HEADER):
        raise _damaged(f"the header of {quoted(name)} is longer than headers are")
    header = _HEADER.fullmatch(bytes(content[start:end]).decode("latin-1"))
    fields = dict(zip(header.groups()[::2], header.groups()[1::2], strict=True)) if header else {}
    if set(fields) != {"descr", "fortran_order", "shape"}:
        raise _damaged(f"the header of {quoted(name)} isn't one of a .npy file")
    dtype = _dtype(name, fields["descr"])
    if fields["fortran_order"] not in ("True", "False") or not _SIZES.fullmatch(fields["shape"]):
        raise _damaged(f"the header of {quoted(name)} isn't one of a .npy file")
    shape = [int(size) for size in re.findall(r"\d+", fields["shape"])]
    if byte_count(name, dtype, shape) != len(content) - end:
        raise _damaged(f"{quoted(name)} has more or fewer bytes than its shape needs")
    order = "F" if fields["fortran_order"] == "True" else "C"
    return make_array(name, content[end:], dtype, shape, order=order)  # type: ignore[arg-type]


def _dtype(name: str, descr: str) -> np.dtype:
    if _BFLOAT16_DESCR.fullmatch(descr):
        return BFLOAT16
    if found := _DESCR.fullmatch(descr):
        return np.dtype(found[1])
    if descr[1:-1] in ("|O", "O", "<O", ">O"):
        raise FormatError(
            f"has Python objects in {quoted(name)}, which is a pickle that could run code; save"
            " the array as numbers."
        )
    raise FormatError(
        f"has {quoted(name)} of type {printable(descr)}, which isn't supported; save it as floats,"
        " integers or booleans of at most 64 bits."
    )


def _damaged(reason: str) -> FormatError:
    return FormatError(f"isn't a sound npz file: {reason}. Download or copy it again.")
