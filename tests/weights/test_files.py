"""Weight files are read back, by this package and by the formats' own libraries."""

import os
import pickle
import re
import string
import tarfile
import tempfile
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from resnet_jax.errors import DataError, WriteError
from resnet_jax.weights.arrays import DTYPES
from resnet_jax.weights.files import read_metadata, read_weights, write_weights

_names = st.text(string.ascii_letters + string.digits + "._/:é ", min_size=1, max_size=40)
_shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def _arrays(draw) -> np.ndarray:
    """Any bits of any type, including NaNs, in C or Fortran order."""
    dtype, shape = draw(st.sampled_from(sorted(DTYPES.items()))), draw(_shapes)
    count = int(np.prod(shape, dtype=int))
    if dtype[0] == "BOOL":
        array = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool)
    else:
        bits = draw(
            st.binary(min_size=count * dtype[1].itemsize, max_size=count * dtype[1].itemsize)
        )
        array = np.frombuffer(bits, dtype[1])
    return array.reshape(shape, order=draw(st.sampled_from("CF")))


def _assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name
        assert found[name].flags.writeable, name
        assert found[name].flags.c_contiguous, name


@settings(max_examples=100)
@given(
    st.dictionaries(_names, _arrays(), max_size=5),
    st.dictionaries(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8"))),
)
def test_what_is_written_is_read_again(arrays, metadata):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights"
        write_weights(path, arrays, metadata=metadata)
        _assert_same(read_weights(path), arrays)
        assert read_metadata(path) == metadata
        again = Path(folder) / "again"
        shuffled = dict(reversed(arrays.items()))
        write_weights(again, shuffled, metadata=dict(reversed(metadata.items())))
        assert again.read_bytes() == path.read_bytes()
        assert sorted(os.listdir(folder)) == ["again", "weights"]  # no temporary file is left


@settings(max_examples=100)
@given(st.dictionaries(_names, _arrays(), max_size=5), st.booleans())
def test_npz_files_are_read_as_numpy_wrote_them(arrays, compressed):
    arrays = {name.strip("/.:") or "x": array for name, array in arrays.items()}
    arrays = {name.replace("//", "/"): array for name, array in arrays.items()}
    if any(re.match(r"[A-Za-z]:/|(.*/)?\.\.?(/|$)", name) for name in arrays):
        return  # refused, as a path that leads out of the archive
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.npz"
        (np.savez_compressed if compressed else np.savez)(path, **arrays)
        _assert_same(read_weights(path), arrays)
        assert read_metadata(path) == {}


@pytest.mark.parametrize("dtype", [d for n, d in DTYPES.items() if n != "BF16"], ids=str)
def test_the_library_reads_what_we_write_and_we_what_it_writes(dtype, tmp_path):
    arrays = {"a": np.arange(6).reshape(2, 3).astype(dtype), "b": np.ones((), dtype)}
    write_weights(tmp_path / "ours", arrays, metadata={"from": "us"})
    _assert_same(safetensors.numpy.load((tmp_path / "ours").read_bytes()), arrays)
    with safetensors.safe_open(tmp_path / "ours", framework="np") as opened:
        assert opened.metadata() == {"from": "us"}
    safetensors.numpy.save_file(arrays, tmp_path / "theirs")
    _assert_same(read_weights(tmp_path / "theirs"), arrays)


def test_bfloat16_keeps_its_values_in_both_formats(tmp_path):
    values = np.array([1.0, -0.00390625, 3.0e38, np.inf], ml_dtypes.bfloat16)
    write_weights(tmp_path / "w.safetensors", {"w": values})
    np.savez(tmp_path / "w.npz", w=values)
    for name in ("w.safetensors", "w.npz"):
        found = read_weights(tmp_path / name)["w"]
        assert found.dtype == ml_dtypes.bfloat16
        assert found.astype(np.float32).tolist() == values.astype(np.float32).tolist()


def test_other_byte_orders_and_headers_of_other_writers_are_read(tmp_path):
    big = np.arange(6, dtype=">f4").reshape(2, 3)
    np.savez(tmp_path / "big.npz", w=big)
    found = read_weights(tmp_path / "big.npz")["w"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, big)
    write_weights(tmp_path / "big.safetensors", {"w": big})
    np.testing.assert_array_equal(read_weights(tmp_path / "big.safetensors")["w"], big)


@pytest.mark.parametrize("name", ["weights.bin", "weights.npz", "weights"])
def test_the_content_tells_the_format(name, tmp_path):
    write_weights(tmp_path / name, {"w": np.ones(3, np.float32)})
    assert read_weights(tmp_path / name)["w"].tolist() == [1, 1, 1]


def test_a_header_that_begins_like_a_pickle_is_read(tmp_path):
    """Headers of 640, 896, 1,152 and 1,408 bytes begin with 80 02 … 80 05."""
    lengths = set()
    for size in range(400, 1400, 4):
        write_weights(tmp_path / "w", {"w": np.ones(3)}, metadata={"": "x" * size})
        begin = (tmp_path / "w").read_bytes()[:8]
        if begin[0] == 0x80:
            assert read_weights(tmp_path / "w")["w"].tolist() == [1, 1, 1]
            lengths.add(int.from_bytes(begin, "little"))
    assert lengths >= {640, 896, 1152, 1408}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello, world", "is neither a safetensors nor an npz file"),
        (b"<!DOCTYPE html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file"),
        (b"\x1f\x8b\x08" + bytes(100), "gzip"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'", "one NumPy array without a name"),
    ],
)
def test_other_files_are_named(content, message, tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    _assert_refused(path, message)


def test_a_tar_archive_is_named(tmp_path):
    path = tmp_path / "model.pth"
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "tensors")
    _assert_refused(path, "resnet-jax convert")


@pytest.mark.parametrize("name", ["model.pth", "my model.pt", "model.safetensors"])
def test_a_pickle_is_refused_with_the_command_that_converts_it(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(pickle.dumps({"w": [1, 2]}))
    error = _assert_refused(path, "is a pickle")
    source, target = str(path), str(path.with_suffix(".safetensors"))
    if name == "model.safetensors":
        target = str(tmp_path / "model-converted.safetensors")
    if " " in name:
        source, target = f"'{source}'", f"'{target}'"
    assert error.endswith(f"resnet-jax convert {source} {target}")


def test_what_cannot_be_opened_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(2**40)
    for path, message in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "pipe", "isn't a file of weights"),
        (Path("/dev/zero"), "isn't a file of weights"),
        (tmp_path / "huge", "more than weights have"),
    ):
        _assert_refused(path, message)


@pytest.mark.parametrize(
    ("arrays", "metadata", "message"),
    [
        ({"w": np.ones(2, np.complex64)}, {}, "'w' of type complex64"),
        ({"w": np.array([object()])}, {}, "'w' of type object"),
        ({"w": np.array(["text"])}, {}, "'w' of type <U4"),
        ({"": np.ones(2)}, {}, "the array name ''"),
        ({"a\nb": np.ones(2)}, {}, r"the array name 'a\nb'"),
        ({"__metadata__": np.ones(2)}, {}, "'__metadata__'"),
        ({"w": np.ones(2)}, {"epoch": 3}, "metadata that aren't text"),
        ({"w": np.ones(2)}, {"x": "y" * 2**22}, "header of 4,194,"),
    ],
)
def test_what_the_format_cannot_hold_is_not_written(arrays, metadata, message, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"what was there")
    with pytest.raises(DataError, match=r"^\S+w\.safetensors ") as raised:
        write_weights(path, arrays, metadata=metadata)
    assert message in str(raised.value)
    assert os.listdir(tmp_path) == ["w.safetensors"]
    assert path.read_bytes() == b"what was there"


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(WriteError, match="can't be written .No such file or directory"):
        write_weights(tmp_path / "none" / "w.safetensors", {"w": np.ones(2)})
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteError, match="can't be written"):
        write_weights(tmp_path / "folder", {"w": np.ones(2)})
    assert os.listdir(tmp_path) == ["folder"]


def test_a_file_replaced_or_cut_while_it_is_read_is_read_whole_or_refused(tmp_path):
    """A memory map would end the process by SIGBUS, or mix the two."""
    path, other = tmp_path / "w.safetensors", tmp_path / "other"
    kinds = [{"w": np.full(200_000, value, np.float32)} for value in (1, 2)]
    contents = []
    for arrays in kinds:
        write_weights(path, arrays)
        contents.append(path.read_bytes())
    stop = threading.Event()

    def disturb():
        turn = 0
        while not stop.is_set():
            turn += 1
            other.write_bytes(contents[turn % 2])
            other.replace(path)
            os.truncate(path, 300_000)
            path.write_bytes(contents[turn % 2])

    thread = threading.Thread(target=disturb)
    thread.start()
    outcomes = {"read": 0, "refused": 0}
    try:
        while min(outcomes.values()) < 20:
            try:
                found = read_weights(path)["w"]
            except DataError:
                outcomes["refused"] += 1
            else:
                assert found.shape == (200_000,)
                assert found[0] in (1, 2)
                assert (found == found[0]).all()
                outcomes["read"] += 1
            assert sum(outcomes.values()) < 20_000, outcomes
    finally:
        stop.set()
        thread.join()


def _assert_refused(path: Path, message: str) -> str:
    with pytest.raises(DataError) as raised:
        read_weights(path)
    error = str(raised.value)
    assert message in error
    assert str(path) in error
    assert "\n" not in error
    return error
