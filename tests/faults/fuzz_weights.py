"""Reads thousands of damaged weight files in a separate process.

    python -m tests.faults.fuzz_weights FORMAT CASES

FORMAT is safetensors or npz. Cases follow from their number alone. Writes one JSON object. This
process may use little memory, so that an array that a header only claims would be noticed.
"""

import io
import json
import random
import re
import resource
import struct
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors.numpy

from resnet_jax.errors import DataError
from resnet_jax.weights.files import read_weights

_NUMBERS = (0, 1, 3, 255, 2**16 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, -1, 10**30)
_ARRAYS = {
    "conv1.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "bn1.num_batches_tracked": np.array(7),
    "bn1.bias": np.array([True, False, True]),
    "fc.weight": np.arange(12, dtype=np.float16).reshape(3, 4, order="F"),
    "empty": np.zeros((0, 5), np.int8),
    "zeros": np.zeros(3000, np.uint8),
}


def make_file(kind: str, arrays: dict[str, np.ndarray], rng: random.Random) -> bytes:
    """A sound file, by the format's own library."""
    if kind == "safetensors":
        return safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in arrays.items()})
    buffer = io.BytesIO()
    (np.savez_compressed if rng.random() < 0.5 else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def damage(data: bytes, kind: str, rng: random.Random) -> bytes:
    """One to three changes, of which some keep the structure around them intact."""
    for _ in range(rng.randint(1, 3)):
        change = rng.choice((_flip, _cut, _insert, _move, _number, _structured, _structured))
        data = _structured(data, rng, kind) if change is _structured else change(data, rng)
    return data


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        if changed:
            # Half of them near the beginning or the end, where headers are.
            near = rng.choice((len(changed), len(changed), 64, 256))
            at = rng.randrange(min(near, len(changed)))
            at = at if rng.random() < 0.5 else len(changed) - 1 - at
            changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randint(0, len(data))] if rng.random() < 0.5 else data[: -rng.randint(1, 40)]


def _insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.choice((0, len(data), rng.randint(0, len(data))))
    return data[:at] + rng.randbytes(rng.randint(1, 40)) + data[at:]


def _move(data: bytes, rng: random.Random) -> bytes:
    """A piece of the file over another."""
    start, at = rng.randint(0, len(data)), rng.randint(0, len(data))
    piece = data[start : start + rng.randint(1, 100)]
    return data[:at] + piece + data[at + len(piece) :]


def _number(data: bytes, rng: random.Random) -> bytes:
    """An extreme number of 2, 4 or 8 bytes, at the beginning, the end or anywhere."""
    size = rng.choice((2, 4, 8))
    number = (rng.choice(_NUMBERS) % 2 ** (8 * size)).to_bytes(size, "little")
    at = rng.choice((0, max(len(data) - rng.randint(1, 120), 0), rng.randint(0, len(data))))
    return data[:at] + number + data[at + size :]


def _structured(data: bytes, rng: random.Random, kind: str) -> bytes:
    """A changed header in a file that is otherwise as it should be; lengths and checksums too."""
    try:
        if kind == "safetensors":
            length = struct.unpack_from("<Q", data)[0]
            text = _edit(data[8 : 8 + length], rng)
            return struct.pack("<Q", len(text)) + text + data[8 + length :]
        buffer = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                if rng.random() < 0.3:
                    content = content[:10] + _edit(content[10:128], rng).ljust(118) + content[128:]
                other = _edit(name.encode(), rng).decode("latin-1") if rng.random() < 0.1 else name
                new.writestr(zipfile.ZipInfo(other), content, rng.choice((0, 8)))
        return buffer.getvalue()
    except Exception:  # damaged too much already for its own library
        return _flip(data, rng)


def _edit(text: bytes, rng: random.Random) -> bytes:
    """A header with another number, type, word, or a doubled piece."""
    kind = rng.randrange(4)
    pattern = (rb"\d+", rb"[A-Z]+\d+|[<|]\w+", rb"\w+", rb".{9}")[kind]
    found = [match.span() for match in re.finditer(pattern, text)]
    if not found:
        return text + b" "
    start, end = rng.choice(found)
    other = (
        str(rng.choice(_NUMBERS)).encode(),
        rng.choice((b"F64", b"F8_E5M2", b"BF16", b"<f8", b"|O", b"|V2", b"|b1", b"<U4", b"C64")),
        rng.choice((b"", b"true", b"null", b"[[", b"1e999", b"..", b"/x", b"__metadata__", b"a")),
        text[start:end] * 2,
    )[kind]
    return text[:start] + other + text[end:]


def by_library(data: bytes, kind: str) -> dict[str, np.ndarray]:
    """Arrays as the format's own library reads them; unknown types as raw bytes."""
    if kind == "npz":
        with np.load(io.BytesIO(data), allow_pickle=False) as opened:
            return {name: opened[name] for name in opened.files}
    types = {**safetensors.numpy._TYPES, "BF16": ml_dtypes.bfloat16}
    return {
        name: np.frombuffer(tensor["data"], types[tensor["dtype"]]).reshape(tensor["shape"])
        for name, tensor in safetensors.deserialize(data)
    }


def _contents(arrays: dict[str, np.ndarray]) -> dict[str, tuple[object, bytes]]:
    return {
        name: (array.shape, array.astype(array.dtype.newbyteorder("=")).tobytes())
        for name, array in arrays.items()
    }


def peak_mib() -> float:
    """Peak memory of this program; getrusage counts its parent's too."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def main(kind: str, cases: int) -> dict[str, object]:
    """Read all cases; returns counts and errors."""
    resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
    read, refused, slowest_s, reasons = 0, 0, 0.0, set()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights"
        for case in range(cases):
            rng = random.Random(f"{kind} {case}")
            names = rng.sample(sorted(_ARRAYS), rng.randint(1, len(_ARRAYS)))
            data = damage(make_file(kind, {name: _ARRAYS[name] for name in names}, rng), kind, rng)
            path.write_bytes(data)
            start = time.process_time()
            try:
                arrays = read_weights(path)
            except DataError as error:
                refused += 1
                line = str(error)
                reasons.add(re.sub(r"'.*'|\(.*\)|\d[\d,]*", "…", line.removeprefix(str(path))))
                if "\n" in line or not line.isprintable() or "memory" in line:
                    wrong.append(f"case {case}: {line!r}")
            except BaseException as error:
                wrong.append(f"case {case}: {type(error).__name__}: {error}")
            else:
                read += 1
                try:
                    same = _contents(arrays) == _contents(by_library(data, kind))
                except Exception as error:
                    wrong.append(f"case {case}: the library refuses it: {error}")
                    same = True
                if not same:
                    wrong.append(f"case {case}: the library reads something else")
            slowest_s = max(slowest_s, time.process_time() - start)
    return {
        "read": read,
        "refused": refused,
        "kinds_of_refusal": len(reasons),
        "wrong": wrong[:20],
        "slowest_s": slowest_s,
        "peak_mib": peak_mib(),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
