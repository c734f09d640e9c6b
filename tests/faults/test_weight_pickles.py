"""Pickles in disguise among weight files: one line each, and no code runs."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from resnet_jax.weights.files import PickleFileError, read_weights
from tests.faults.weight_files import (
    refusal_of,
)


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
    error = refusal_of(path)
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
