"""Hostile and damaged weight files: one line each, no code runs, little memory is used."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from resnet_jax.errors import DataError
from resnet_jax.weights.arrays import MAX_HEADER_BYTES
from resnet_jax.weights.files import PickleFileError, read_weights

_ROOT = Path(__file__).parents[2]
_READ_ONE = """
import resource, sys, time
from resnet_jax.errors import DataError
from resnet_jax.weights.files import read_weights
from tests.faults.fuzz_weights import peak_mib
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
begin = time.process_time()
try:
    read_weights(sys.argv[1])
except DataError as error:
    print(error)
print(peak_mib())
print(time.process_time() - begin)
"""


def _refusal(path: Path) -> str:
    with pytest.raises(DataError) as raised:
        read_weights(path)
    error = str(raised.value)
    assert str(path) in error
    assert "\n" not in error
    assert error.isprintable()
    return error


# Pickles, in disguise


class _Payload:
    """Its pickle makes a folder when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def _torch_zip(payload: object, protocol: int = 2) -> bytes:
    """As torch.save writes it since version 1.6."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(payload, protocol))
        archive.writestr("archive/data/0", bytes(16))
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def _torch_legacy(payload: object) -> bytes:
    """As torch.save wrote it before: a magic number, a version, the machine, the object."""
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, payload, [])
    return b"".join(pickle.dumps(part, 2) for part in parts)


def _npy(payload: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([payload], object), allow_pickle=True)
    return buffer.getvalue()


def _npz(payload: object) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, sound=np.ones(3), w=np.array([payload], object))
    return buffer.getvalue()


def _npz_with_pickle(payload: object) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, sound=np.ones(3))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("w.pkl", pickle.dumps(payload))
    return buffer.getvalue()


_DISGUISES = {
    "zip": _torch_zip,
    "legacy": _torch_legacy,
    **{f"protocol {p}": lambda payload, p=p: pickle.dumps(payload, p) for p in range(6)},
    **{f"dict {p}": lambda payload, p=p: pickle.dumps({"w": payload}, p) for p in range(6)},
    "long": lambda payload: pickle.dumps([*range(10_000), payload], 0),
    "npy": _npy,
    "npz": _npz,
    "npz with a pickle": _npz_with_pickle,
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz"])
@pytest.mark.parametrize("disguise", _DISGUISES)
def test_a_pickle_is_refused_and_not_run(disguise, suffix, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / f"weights{suffix}"
    path.write_bytes(_DISGUISES[disguise](_Payload(marker)))
    error = _refusal(path)
    assert not marker.exists()
    if disguise == "npz":
        assert "has Python objects in 'w', which is a pickle" in error
    elif disguise == "npy":
        assert "one NumPy array without a name" in error
    else:
        assert "resnet-jax convert" in error
        with pytest.raises(PickleFileError):
            read_weights(path)


def test_the_payload_would_run(tmp_path):
    """Otherwise the tests above would prove nothing."""
    for disguise in ("protocol 0", "protocol 5"):
        pickle.loads(_DISGUISES[disguise](_Payload(tmp_path / disguise)))
        assert (tmp_path / disguise).exists()
    (tmp_path / "w.npz").write_bytes(_npz(_Payload(tmp_path / "npz")))
    _ = np.load(tmp_path / "w.npz", allow_pickle=True)["w"]
    assert (tmp_path / "npz").exists()


# Headers of safetensors


def _safetensors(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _tensor(begin, end, shape=(1,), dtype="F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


_TWICE = b'{"a":%s,"a":%s}' % (
    json.dumps(_tensor(0, 4)).encode(),
    json.dumps(_tensor(0, 4, dtype="I32")).encode(),
)
_DEEP = b"[" * 100_000 + b"]" * 100_000
_UNSOUND = "isn't a sound safetensors file: "  # in the library's words, which change
_HEADERS = {
    "length 2**63": (struct.pack("<Q", 2**63) + b"{}", "claims 9,223,372,036,854,775,808 bytes"),
    "length 2**64-1": (b"\xff" * 8 + b"{}", "claims 18,446,744,073,709,551,615 bytes"),
    "length beyond the end": (struct.pack("<Q", 100) + b"{}", "ends within its header"),
    "no JSON": (_safetensors(b"{]"), _UNSOUND),
    "overlap": (_safetensors({"a": _tensor(0, 4), "b": _tensor(0, 4)}, bytes(4)), _UNSOUND),
    "overlap in part": (
        _safetensors({"a": _tensor(0, 8, (2,)), "b": _tensor(4, 12, (2,))}, bytes(12)),
        _UNSOUND,
    ),
    "gap": (_safetensors({"a": _tensor(0, 4), "b": _tensor(8, 12)}, bytes(12)), _UNSOUND),
    "negative offset": (_safetensors({"a": _tensor(-4, 0)}, bytes(4)), _UNSOUND),
    "end before begin": (_safetensors({"a": _tensor(4, 0)}, bytes(4)), _UNSOUND),
    "offset of 2**63": (_safetensors({"a": _tensor(0, 2**63)}, bytes(4)), _UNSOUND),
    "trailing bytes": (_safetensors({"a": _tensor(0, 4)}, bytes(5)), _UNSOUND),
    "one name twice": (_safetensors(_TWICE, bytes(4)), "has 'a' twice"),
    "a field twice": (
        _safetensors(b'{"a":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}}'),
        _UNSOUND,
    ),
    "a field of its own": (
        _safetensors({"a": {**_tensor(0, 4), "code": "x"}}, bytes(4)),
        "a field 'code'",
    ),
    "a number of 5,000 digits": (
        _safetensors(
            b'{"a":{"x":%s,%s' % (b"1" * 5000, json.dumps(_tensor(0, 4)).encode()[1:]) + b"}",
            bytes(4),
        ),
        _UNSOUND,
    ),
    "shape of 2**64": (_safetensors({"a": _tensor(0, 4, (2**63, 4))}, bytes(4)), _UNSOUND),
    "shape of 2**64 + 1": (
        _safetensors({"a": _tensor(0, 4, (274177, 67280421310721))}, bytes(4)),
        _UNSOUND,
    ),
    "shape with 0": (_safetensors({"a": _tensor(0, 0, (0, 2**62))}), "which can't be"),
    "100 dimensions": (_safetensors({"a": _tensor(0, 4, (1,) * 100)}, bytes(4)), "which can't be"),
    "shape of fractions": (_safetensors({"a": _tensor(0, 4, (1.0,))}, bytes(4)), _UNSOUND),
    "boolean 2": (_safetensors({"a": _tensor(0, 1, dtype="BOOL")}, b"\2"), "neither 0 nor 1"),
    **{
        f"type {kind}": (_safetensors({"a": _tensor(0, 1, dtype=kind)}, b"\2"), f"'{kind}'")
        for kind in ("F8_E4M3", "F8_E5M2", "F8_E8M0")
    },
    "complex": (_safetensors({"a": _tensor(0, 8, dtype="C64")}, bytes(8)), "'C64'"),
    "unknown type": (_safetensors({"a": _tensor(0, 4, dtype="O")}, bytes(4)), _UNSOUND),
    "metadata that isn't text": (_safetensors({"__metadata__": {"a": [1]}}), _UNSOUND),
    "deep": (_safetensors(b'{"a":' + _DEEP + b"}"), _UNSOUND),
    "deep in a field": (
        _safetensors(b'{"a":{"x":' + _DEEP + b',"dtype":"F32","shape":[],"data_offsets":[0,4]}}'),
        _UNSOUND,
    ),
    "a name with a line break": (
        _safetensors({"a\n\x1b[2J": _tensor(0, 4)}, bytes(4)),
        r"'a\n\x1b",
    ),
    "an endless name": (_safetensors({"a" * 10_000: _tensor(0, 4)}, bytes(4)), "aaa…'"),
    "a sentence in a type": (
        _safetensors({"a": _tensor(0, 4, dtype="\x1b[2J" + "x" * 10_000)}, bytes(4)),
        _UNSOUND,
    ),
}


@pytest.mark.parametrize("attack", _HEADERS)
def test_a_header_that_lies_is_refused(attack, tmp_path):
    content, message = _HEADERS[attack]
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    error = _refusal(path)
    assert message in error
    assert len(error) < len(str(path)) + 400


# Directories and members of npz


def _member(shape="(3,)", descr="'<f4'", order="False", data=bytes(12), version=b"\1\0") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    size = struct.pack("<H" if version == b"\1\0" else "<I", len(text) + 1)
    return b"\x93NUMPY" + version + size + text + b"\n" + data


def _archive(*members: tuple[str | zipfile.ZipInfo, bytes], method=zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as archive:
        warnings.simplefilter("ignore")  # of names that appear twice
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def _special(mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("w.npy")
    info.external_attr = mode << 16
    return info


def _overlapping() -> bytes:
    """Two entries of the directory for one member."""
    data = _archive(("a.npy", _member()), ("b.npy", _member()))
    return data.replace(struct.pack("<L", data.index(b"PK\3\4", 4)) + b"b.npy", bytes(4) + b"b.npy")


def _renamed() -> bytes:
    """A member whose local header has another name than the directory."""
    return _archive(("a.npy", _member())).replace(b"a.npy", b"b.npy", 1)


def _declared(size: int) -> bytes:
    """A member whose directory entry claims another size, with the right checksum."""
    data = bytearray(_archive(("a.npy", _member()), method=zipfile.ZIP_DEFLATED))
    at = data.index(b"PK\1\2") + 24
    data[at : at + 4] = struct.pack("<L", size)
    return bytes(data)


_SOUND = _archive(("a.npy", _member()), ("b/c.npy", _member("(1, 3)")))
_MEMBERS = {
    "..": (_archive(("../w.npy", _member())), "leads out of the archive"),
    ".. inside": (_archive(("a/../../w.npy", _member())), "leads out of the archive"),
    "absolute": (_archive(("/etc/w.npy", _member())), "leads out of the archive"),
    "backslash": (_archive(("..\\w.npy", _member())), "leads out of the archive"),
    "drive": (_archive(("C:/w.npy", _member())), "leads out of the archive"),
    "zero byte": (_SOUND.replace(b"b/c.npy", b"b\0c.npy"), "leads out of the archive"),
    "folder": (_archive(("w.npy/", b"")), "leads out of the archive"),
    "link": (_archive((_special(0o120777), b"/etc/passwd")), "a link or a device"),
    "device": (_archive((_special(0o020666), b"")), "a link or a device"),
    "one name twice": (_archive(("w.npy", _member()), ("w.npy", _member())), "'w.npy' twice"),
    "other files": (_archive(("w.npy", _member()), ("run.py", b"")), "it holds 'run.py'"),
    "line break": (_archive(("a\nb.npy", _member())), r"array name 'a\nb'"),
    "overlap": (_overlapping(), "overlaps another part"),
    "two names": (_renamed(), "File name in directory 'a.npy' and header"),
    "prefix": (_archive(("a.npy", _member()))[:4] + _SOUND, "isn't a sound npz file"),
    "trailing bytes": (_SOUND + b"x", "isn't a sound npz file"),
    "comment": (_SOUND[:-2] + b"\4\0what", "bytes follow after its end"),
    "lzma": (_archive(("w.npy", _member()), method=zipfile.ZIP_LZMA), "a compression"),
    "encrypted": (
        _archive(("w.npy", _member())).replace(
            b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0"
        ),
        "is encrypted",
    ),
    "less than claimed": (_declared(4000), "more or fewer bytes"),
    "more than claimed": (_declared(10), "Bad CRC-32"),
    "claims 4 GB": (_declared(2**32 - 2), "claim to inflate to 4,294,967,294"),
    "checksum": (_SOUND.replace(bytes(12), bytes(11) + b"\1", 1), "Bad CRC-32"),
    "shape of 2**64": (
        _archive(("w.npy", _member("(4294967296, 4294967296)"))),
        "which can't be",
    ),
    "shape of 2**40": (_archive(("w.npy", _member("(1099511627776,)"))), "more or fewer bytes"),
    "shape with 0": (_archive(("w.npy", _member("(0, 9223372036854775807)"))), "which can't be"),
    "negative shape": (_archive(("w.npy", _member("(-3,)"))), "which can't be"),
    "shape of 30 digits": (_archive(("w.npy", _member(f"({10**30},)"))), "which can't be"),
    "50 dimensions": (_archive(("w.npy", _member("(" + "1," * 49 + "3)"))), "which can't be"),
    "a call": (_archive(("w.npy", _member("print()"))), "no header of a .npy file"),
    "deep signs": (_archive(("w.npy", _member("-" * 9000 + "3"))), "no header of a .npy file"),
    "deep": (_archive(("w.npy", _member("(" * 3000 + ")" * 3000))), "no header of a .npy"),
    "objects": (_archive(("w.npy", _member(descr="'|O'"))), "has Python objects in 'w'"),
    "records": (_archive(("w.npy", _member(descr="[('a', '<f4')]"))), "isn't supported"),
    "records of objects": (_archive(("w.npy", _member(descr="[('a', '|O')]"))), "isn't supported"),
    "text": (_archive(("w.npy", _member(descr="'<U1'"))), "'<U1'"),
    "complex": (_archive(("w.npy", _member(descr="'<c8'"))), "'<c8'"),
    "dates": (_archive(("w.npy", _member(descr="'<M8[s]'"))), "isn't supported"),
    "boolean 2": (_archive(("w.npy", _member(descr="'|b1'", shape="(1,)", data=b"\2"))), "neither"),
    "a long header": (_archive(("w.npy", _member("(3,)" + " " * 20_000))), "no header of a .npy"),
    "header beyond the end": (
        _archive(("w.npy", b"\x93NUMPY\1\0\xff\xff{}")),
        "no header of a .npy file",
    ),
    "version 9": (_archive(("w.npy", _member(version=b"\x09\0"))), "version 1, 2 or 3"),
    "nothing": (_archive(("w.npy", b"")), "no header of a .npy file"),
}


@pytest.mark.parametrize("attack", _MEMBERS)
def test_an_archive_that_lies_is_refused(attack, tmp_path):
    content, message = _MEMBERS[attack]
    path = tmp_path / "weights.npz"
    path.write_bytes(content)
    error = _refusal(path)
    assert message in error
    assert len(error) < len(str(path)) + 400
    assert os.listdir(tmp_path) == ["weights.npz"]


def test_the_archive_that_the_attacks_change_is_sound(tmp_path):
    path = tmp_path / "weights.npz"
    for version in (b"\1\0", b"\2\0", b"\3\0"):
        path.write_bytes(_archive(("a.npy", _member(version=version)), ("b/c.npy", _member("3,"))))
        assert "no header of a .npy file" in _refusal(path)  # a shape without brackets
        path.write_bytes(_archive(("a.npy", _member(version=version))))
        assert read_weights(path)["a"].tolist() == [0, 0, 0]
    path.write_bytes(_SOUND)
    assert {name: a.shape for name, a in read_weights(path).items()} == {"a": (3,), "b/c": (1, 3)}


def test_a_streamed_archive_is_read(tmp_path):
    """Its sizes follow the data, as when NumPy writes to a pipe."""

    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.content = b""

        def writable(self) -> bool:
            return True

        def write(self, piece) -> int:
            self.content += bytes(piece)
            return len(piece)

    for save in (np.savez, np.savez_compressed):
        pipe = Pipe()
        save(pipe, a=np.arange(5), b=np.ones(3))
        (tmp_path / "w.npz").write_bytes(pipe.content)
        arrays = read_weights(tmp_path / "w.npz")
        assert arrays["a"].tolist() == [0, 1, 2, 3, 4]
        assert arrays["b"].tolist() == [1, 1, 1]


# Damage


@pytest.mark.parametrize("kind", ["safetensors", "npz"])
def test_every_shorter_and_longer_file_is_refused(kind, tmp_path):
    if kind == "npz":
        content = _SOUND
    else:
        content = _safetensors({"a": _tensor(0, 8, (2,)), "b": _tensor(8, 12)}, bytes(12))
    path = tmp_path / f"weights.{kind}"
    path.write_bytes(content)
    assert len(read_weights(path)) == 2
    for k in range(1, len(content) + 1):
        path.write_bytes(content[:-k])
        _refusal(path)
    for k in (1, 7, 8, 100, 70_000):
        for extra in (bytes(k), b"PK\5\6" * k, content * k):
            path.write_bytes(content + extra[:70_000])
            _refusal(path)


# Memory and time


def _read_elsewhere(path: Path) -> tuple[str, float, float]:
    """Read the file in a process limited to 2 GiB: its output, peak MiB and CPU seconds."""
    done = subprocess.run(
        [sys.executable, "-c", _READ_ONE, path],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=_ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *error, mebibytes, cpu_s = done.stdout.splitlines()
    return "\n".join(error), float(mebibytes), float(cpu_s)


def _header_of(piece: bytes, total: int) -> bytes:
    """A valid tensor with a field that repeats `piece`."""
    field = b"[" + (piece + b",") * (total // (len(piece) + 1) - 30) + piece + b"]"
    tensor = json.dumps(_tensor(0, 4)).encode()
    return _safetensors(b'{"a":{"x":' + field + b"," + tensor[1:] + b"}", bytes(4))


def _bomb(declared: int) -> bytes:
    """A member that inflates to 1 GB of zeros, and claims `declared` bytes."""
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    block = deflate.compress(bytes(10**7)) + deflate.flush(zlib.Z_FULL_FLUSH)
    data = bytearray(_archive(("w.npy", block * 100 + deflate.flush())))
    directory = data.rindex(b"PK\1\2")
    struct.pack_into("<H", data, 8, zipfile.ZIP_DEFLATED)
    struct.pack_into("<H", data, directory + 10, zipfile.ZIP_DEFLATED)
    struct.pack_into("<L", data, directory + 24, declared)
    return bytes(data)


def _members(count: int) -> bytes:
    """A directory of `count` entries."""
    directory = (b"PK\1\2" + bytes(42)) * count
    end = struct.pack(
        "<4s4H2LH", b"PK\5\6", 0, 0, count % 2**16, count % 2**16, len(directory), 4, 0
    )
    return b"PK\3\4" + directory + end


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: _header_of(b"[]", 100_000_000), "its header claims"),
        (lambda: _header_of(b"[]", MAX_HEADER_BYTES), "a field 'x'"),
        (lambda: _header_of(b"{}", MAX_HEADER_BYTES), "a field 'x'"),
        (lambda: _header_of(b'{"":[]}', MAX_HEADER_BYTES), "a field 'x'"),
        (lambda: _bomb(10**9), "claim to inflate to 1,000,000,000"),
        (lambda: _bomb(1000), "Bad CRC-32"),
        (lambda: _members(10**6), "more than 50,000 members"),
    ],
    ids=["100 MB of JSON", "lists", "objects", "pairs", "bomb", "hidden bomb", "members"],
)
def test_a_bomb_takes_little_memory_and_time(content, message, tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(content())
    error, mebibytes, cpu_s = _read_elsewhere(path)
    assert message in error
    assert "\n" not in error
    assert mebibytes < 500
    assert cpu_s < 2


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["safetensors", "npz"])
def test_two_thousand_damaged_files(kind, record_property):
    """Only DataError is raised, within seconds; arrays equal those of the format's library."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.fuzz_weights", kind, "2000"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        cwd=_ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["wrong"] == []
    assert result["read"] + result["refused"] == 2000
    record_property("tries", 2000)
    assert result["read"] > 50
    assert result["kinds_of_refusal"] > 10
    assert result["slowest_s"] < 2
    assert result["peak_mib"] < 500
