"""Hostile and damaged weight files: one line each."""

import io
import json
import os
import struct
import zipfile

import numpy as np
import pytest

from resnet_jax.weights.files import read_weights
from tests.faults.weight_files import (
    SOUND_NPZ,
    npy_file,
    npz_file,
    refusal_of,
    safetensors_file,
    tensor_entry,
)

_TWICE = b'{"a":%s,"a":%s}' % (
    json.dumps(tensor_entry(0, 4)).encode(),
    json.dumps(tensor_entry(0, 4, dtype="I32")).encode(),
)


_DEEP = b"[" * 100_000 + b"]" * 100_000


_UNSOUND = "isn't a sound safetensors file: "  # in the library's words, which change


_HEADERS = {
    "length 2**63": (struct.pack("<Q", 2**63) + b"{}", "claims 9,223,372,036,854,775,808 bytes"),
    "length 2**64-1": (b"\xff" * 8 + b"{}", "claims 18,446,744,073,709,551,615 bytes"),
    "length beyond the end": (struct.pack("<Q", 100) + b"{}", "ends within its header"),
    "no JSON": (safetensors_file(b"{]"), _UNSOUND),
    "overlap": (
        safetensors_file({"a": tensor_entry(0, 4), "b": tensor_entry(0, 4)}, bytes(4)),
        _UNSOUND,
    ),
    "overlap in part": (
        safetensors_file(
            {"a": tensor_entry(0, 8, (2,)), "b": tensor_entry(4, 12, (2,))}, bytes(12)
        ),
        _UNSOUND,
    ),
    "gap": (
        safetensors_file({"a": tensor_entry(0, 4), "b": tensor_entry(8, 12)}, bytes(12)),
        _UNSOUND,
    ),
    "negative offset": (safetensors_file({"a": tensor_entry(-4, 0)}, bytes(4)), _UNSOUND),
    "end before begin": (safetensors_file({"a": tensor_entry(4, 0)}, bytes(4)), _UNSOUND),
    "offset of 2**63": (safetensors_file({"a": tensor_entry(0, 2**63)}, bytes(4)), _UNSOUND),
    "trailing bytes": (safetensors_file({"a": tensor_entry(0, 4)}, bytes(5)), _UNSOUND),
    "one name twice": (safetensors_file(_TWICE, bytes(4)), "has 'a' twice"),
    "a field twice": (
        safetensors_file(b'{"a":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}}'),
        _UNSOUND,
    ),
    "a field of its own": (
        safetensors_file({"a": {**tensor_entry(0, 4), "code": "x"}}, bytes(4)),
        "a field 'code'",
    ),
    "a number of 5,000 digits": (
        safetensors_file(
            b'{"a":{"x":%s,%s' % (b"1" * 5000, json.dumps(tensor_entry(0, 4)).encode()[1:]) + b"}",
            bytes(4),
        ),
        _UNSOUND,
    ),
    "shape of 2**64": (safetensors_file({"a": tensor_entry(0, 4, (2**63, 4))}, bytes(4)), _UNSOUND),
    "shape of 2**64 + 1": (
        safetensors_file({"a": tensor_entry(0, 4, (274177, 67280421310721))}, bytes(4)),
        _UNSOUND,
    ),
    "shape with 0": (safetensors_file({"a": tensor_entry(0, 0, (0, 2**62))}), "which can't be"),
    "100 dimensions": (
        safetensors_file({"a": tensor_entry(0, 4, (1,) * 100)}, bytes(4)),
        "which can't be",
    ),
    "shape of fractions": (safetensors_file({"a": tensor_entry(0, 4, (1.0,))}, bytes(4)), _UNSOUND),
    "boolean 2": (
        safetensors_file({"a": tensor_entry(0, 1, dtype="BOOL")}, b"\2"),
        "neither 0 nor 1",
    ),
    **{
        f"type {kind}": (
            safetensors_file({"a": tensor_entry(0, 1, dtype=kind)}, b"\2"),
            f"'{kind}'",
        )
        for kind in ("F8_E4M3", "F8_E5M2", "F8_E8M0")
    },
    "complex": (safetensors_file({"a": tensor_entry(0, 8, dtype="C64")}, bytes(8)), "'C64'"),
    "unknown type": (safetensors_file({"a": tensor_entry(0, 4, dtype="O")}, bytes(4)), _UNSOUND),
    "metadata that isn't text": (safetensors_file({"__metadata__": {"a": [1]}}), _UNSOUND),
    "deep": (safetensors_file(b'{"a":' + _DEEP + b"}"), _UNSOUND),
    "deep in a field": (
        safetensors_file(
            b'{"a":{"x":' + _DEEP + b',"dtype":"F32","shape":[],"data_offsets":[0,4]}}'
        ),
        _UNSOUND,
    ),
    "a name with a line break": (
        safetensors_file({"a\n\x1b[2J": tensor_entry(0, 4)}, bytes(4)),
        r"'a\n\x1b",
    ),
    "an endless name": (safetensors_file({"a" * 10_000: tensor_entry(0, 4)}, bytes(4)), "aaa…'"),
    "a sentence in a type": (
        safetensors_file({"a": tensor_entry(0, 4, dtype="\x1b[2J" + "x" * 10_000)}, bytes(4)),
        _UNSOUND,
    ),
}


@pytest.mark.parametrize("attack", _HEADERS)
def test_a_header_that_lies_is_refused(attack, tmp_path):
    content, message = _HEADERS[attack]
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    error = refusal_of(path)
    assert message in error
    assert len(error) < len(str(path)) + 400


def _special(mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("w.npy")
    info.external_attr = mode << 16
    return info


def _overlapping() -> bytes:
    """Two entries of the directory for one member."""
    data = npz_file(("a.npy", npy_file()), ("b.npy", npy_file()))
    return data.replace(struct.pack("<L", data.index(b"PK\3\4", 4)) + b"b.npy", bytes(4) + b"b.npy")


def _renamed() -> bytes:
    """A member whose local header has another name than the directory."""
    return npz_file(("a.npy", npy_file())).replace(b"a.npy", b"b.npy", 1)


def _declared(size: int) -> bytes:
    """A member whose directory entry claims another size, with the right checksum."""
    data = bytearray(npz_file(("a.npy", npy_file()), method=zipfile.ZIP_DEFLATED))
    at = data.index(b"PK\1\2") + 24
    data[at : at + 4] = struct.pack("<L", size)
    return bytes(data)


_MEMBERS = {
    "..": (npz_file(("../w.npy", npy_file())), "leads out of the archive"),
    ".. inside": (npz_file(("a/../../w.npy", npy_file())), "leads out of the archive"),
    "absolute": (npz_file(("/etc/w.npy", npy_file())), "leads out of the archive"),
    "backslash": (npz_file(("..\\w.npy", npy_file())), "leads out of the archive"),
    "drive": (npz_file(("C:/w.npy", npy_file())), "leads out of the archive"),
    "zero byte": (SOUND_NPZ.replace(b"b/c.npy", b"b\0c.npy"), "leads out of the archive"),
    "folder": (npz_file(("w.npy/", b"")), "leads out of the archive"),
    "link": (npz_file((_special(0o120777), b"/etc/passwd")), "a link or a device"),
    "device": (npz_file((_special(0o020666), b"")), "a link or a device"),
    "one name twice": (npz_file(("w.npy", npy_file()), ("w.npy", npy_file())), "'w.npy' twice"),
    "other files": (npz_file(("w.npy", npy_file()), ("run.py", b"")), "it holds 'run.py'"),
    "line break": (npz_file(("a\nb.npy", npy_file())), r"array name 'a\nb'"),
    "overlap": (_overlapping(), "overlaps another part"),
    "two names": (_renamed(), "File name in directory 'a.npy' and header"),
    "prefix": (npz_file(("a.npy", npy_file()))[:4] + SOUND_NPZ, "isn't a sound npz file"),
    "trailing bytes": (SOUND_NPZ + b"x", "isn't a sound npz file"),
    "comment": (SOUND_NPZ[:-2] + b"\4\0what", "bytes follow after its end"),
    "lzma": (npz_file(("w.npy", npy_file()), method=zipfile.ZIP_LZMA), "a compression"),
    "encrypted": (
        npz_file(("w.npy", npy_file())).replace(
            b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0"
        ),
        "is encrypted",
    ),
    "less than claimed": (_declared(4000), "more or fewer bytes"),
    "more than claimed": (_declared(10), "Bad CRC-32"),
    "claims 4 GB": (_declared(2**32 - 2), "claim to inflate to 4,294,967,294"),
    "checksum": (SOUND_NPZ.replace(bytes(12), bytes(11) + b"\1", 1), "Bad CRC-32"),
    "shape of 2**64": (
        npz_file(("w.npy", npy_file("(4294967296, 4294967296)"))),
        "which can't be",
    ),
    "shape of 2**40": (npz_file(("w.npy", npy_file("(1099511627776,)"))), "more or fewer bytes"),
    "shape with 0": (npz_file(("w.npy", npy_file("(0, 9223372036854775807)"))), "which can't be"),
    "negative shape": (npz_file(("w.npy", npy_file("(-3,)"))), "which can't be"),
    "shape of 30 digits": (npz_file(("w.npy", npy_file(f"({10**30},)"))), "which can't be"),
    "50 dimensions": (npz_file(("w.npy", npy_file("(" + "1," * 49 + "3)"))), "which can't be"),
    "a call": (npz_file(("w.npy", npy_file("print()"))), "no header of a .npy file"),
    "deep signs": (npz_file(("w.npy", npy_file("-" * 9000 + "3"))), "no header of a .npy file"),
    "deep": (npz_file(("w.npy", npy_file("(" * 3000 + ")" * 3000))), "no header of a .npy"),
    "objects": (npz_file(("w.npy", npy_file(descr="'|O'"))), "has Python objects in 'w'"),
    "records": (npz_file(("w.npy", npy_file(descr="[('a', '<f4')]"))), "isn't supported"),
    "records of objects": (npz_file(("w.npy", npy_file(descr="[('a', '|O')]"))), "isn't supported"),
    "text": (npz_file(("w.npy", npy_file(descr="'<U1'"))), "'<U1'"),
    "complex": (npz_file(("w.npy", npy_file(descr="'<c8'"))), "'<c8'"),
    "dates": (npz_file(("w.npy", npy_file(descr="'<M8[s]'"))), "isn't supported"),
    "boolean 2": (
        npz_file(("w.npy", npy_file(descr="'|b1'", shape="(1,)", data=b"\2"))),
        "neither",
    ),
    "a long header": (npz_file(("w.npy", npy_file("(3,)" + " " * 20_000))), "no header of a .npy"),
    "header beyond the end": (
        npz_file(("w.npy", b"\x93NUMPY\1\0\xff\xff{}")),
        "no header of a .npy file",
    ),
    "version 9": (npz_file(("w.npy", npy_file(version=b"\x09\0"))), "version 1, 2 or 3"),
    "nothing": (npz_file(("w.npy", b"")), "no header of a .npy file"),
}


@pytest.mark.parametrize("attack", _MEMBERS)
def test_an_archive_that_lies_is_refused(attack, tmp_path):
    content, message = _MEMBERS[attack]
    path = tmp_path / "weights.npz"
    path.write_bytes(content)
    error = refusal_of(path)
    assert message in error
    assert len(error) < len(str(path)) + 400
    assert os.listdir(tmp_path) == ["weights.npz"]


def test_the_archive_that_the_attacks_change_is_sound(tmp_path):
    path = tmp_path / "weights.npz"
    for version in (b"\1\0", b"\2\0", b"\3\0"):
        path.write_bytes(
            npz_file(("a.npy", npy_file(version=version)), ("b/c.npy", npy_file("3,")))
        )
        assert "no header of a .npy file" in refusal_of(path)  # a shape without brackets
        path.write_bytes(npz_file(("a.npy", npy_file(version=version))))
        assert read_weights(path)["a"].tolist() == [0, 0, 0]
    path.write_bytes(SOUND_NPZ)
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


@pytest.mark.parametrize("kind", ["safetensors", "npz"])
def test_every_shorter_and_longer_file_is_refused(kind, tmp_path):
    if kind == "npz":
        content = SOUND_NPZ
    else:
        content = safetensors_file(
            {"a": tensor_entry(0, 8, (2,)), "b": tensor_entry(8, 12)}, bytes(12)
        )
    path = tmp_path / f"weights.{kind}"
    path.write_bytes(content)
    assert len(read_weights(path)) == 2
    for k in range(1, len(content) + 1):
        path.write_bytes(content[:-k])
        refusal_of(path)
    for k in (1, 7, 8, 100, 70_000):
        for extra in (bytes(k), b"PK\5\6" * k, content * k):
            path.write_bytes(content + extra[:70_000])
            refusal_of(path)
