"""Weight files that would take much memory or time, and thousands of damaged ones."""

import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest

from resnet_jax.weights.arrays import MAX_HEADER_BYTES
from tests.faults.weight_files import (
    npz_file,
    safetensors_file,
    tensor_entry,
)

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


def _read_elsewhere(path: Path) -> tuple[str, float, float]:
    """Read the file in a process limited to 2 GiB: its output, peak MiB and CPU seconds."""
    done = subprocess.run(
        [sys.executable, "-c", _READ_ONE, path],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=_ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *error, mebibytes, cpu_s = done.stdout.splitlines()
    return "\n".join(error), float(mebibytes), float(cpu_s)


def _header_of(piece: bytes, total: int) -> bytes:
    """A valid tensor with a field that repeats `piece`."""
    field = b"[" + (piece + b",") * (total // (len(piece) + 1) - 30) + piece + b"]"
    tensor = json.dumps(tensor_entry(0, 4)).encode()
    return safetensors_file(b'{"a":{"x":' + field + b"," + tensor[1:] + b"}", bytes(4))


def _bomb(declared: int) -> bytes:
    """A member that inflates to 1 GB of zeros, and claims `declared` bytes."""
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    block = deflate.compress(bytes(10**7)) + deflate.flush(zlib.Z_FULL_FLUSH)
    data = bytearray(npz_file(("w.npy", block * 100 + deflate.flush())))
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
        timeout=600,
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
