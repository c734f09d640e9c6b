"""Weight files, byte by byte."""

import io
import json
import struct
import warnings
import zipfile
from pathlib import Path

import pytest

from resnet_jax.errors import DataError
from resnet_jax.weights.files import read_weights


def refusal_of(path: Path) -> str:
    with pytest.raises(DataError) as raised:
        read_weights(path)
    error = str(raised.value)
    assert str(path) in error
    assert "\n" not in error
    assert error.isprintable()
    return error


def safetensors_file(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor_entry(begin, end, shape=(1,), dtype="F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def npy_file(shape="(3,)", descr="'<f4'", order="False", data=bytes(12), version=b"\1\0") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    size = struct.pack("<H" if version == b"\1\0" else "<I", len(text) + 1)
    return b"\x93NUMPY" + version + size + text + b"\n" + data


def npz_file(*members: tuple[str | zipfile.ZipInfo, bytes], method=zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as archive:
        warnings.simplefilter("ignore")  # of names that appear twice
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


SOUND_NPZ = npz_file(("a.npy", npy_file()), ("b/c.npy", npy_file("(1, 3)")))
