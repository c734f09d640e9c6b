"""CIFAR archives to TFDS folders: the records of TFDS, and nothing unfinished."""

import dataclasses
import hashlib
import http.server
import io
import logging
import shutil
import socket
import tarfile
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest

from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.prepare import cifar, cifar_archive
from resnet_jax.errors import ConfigError, DataError, WriteError
from resnet_jax.utils.files import TEMPORARY_SUFFIX

EXAMPLES = {"train": 250, "test": 10}
OFFICIAL = {name: cifar_archive.official_archive(name) for name in ("cifar10", "cifar100")}


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Small archives, a temporary cache, and no network."""
    monkeypatch.setattr(cifar, "EXAMPLES", EXAMPLES)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)

    def refuse(url, timeout):
        raise AssertionError(f"the network must not be used here: {url}")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def contents(name):
    """File names and bytes inside a small archive of the real layout."""
    layout = OFFICIAL[name]
    classes = {"cifar10": [10], "cifar100": [20, 100]}[name]
    rng = np.random.default_rng(len(name))
    files = {}
    for split, parts in layout.files.items():
        n = EXAMPLES[split]
        labels = np.stack([rng.integers(0, k, n, np.uint8) for k in classes], axis=1)
        pixels = rng.integers(0, 256, (n, 3072), np.uint8)
        records = np.concatenate([labels, pixels], axis=1)
        for part, rows in zip(parts, np.split(records, len(parts)), strict=True):
            files[layout.prefix + part] = rows.tobytes()
    for file, k in zip(layout.label_files, classes, strict=True):
        names = "".join(f"{file[:4]}{i}\n" for i in range(k))
        files[layout.prefix + file] = (names + "\n").encode()
    return files


def pack(path, files, links=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            member.size = EXAMPLES["train"] // 5 * 3073  # as large as what it pretends to be
            tar.addfile(member)
    return path


def accept(monkeypatch, path, name="cifar10", **changes):
    """Treat the file at `path` as the official archive of `name`."""
    data = path.read_bytes()
    archive = dataclasses.replace(
        OFFICIAL[name], size=len(data), sha256=hashlib.sha256(data).hexdigest()
    )
    archive = dataclasses.replace(archive, **changes)
    monkeypatch.setattr(cifar, "official_archive", {name: archive}.__getitem__)
    return archive


@pytest.fixture
def archive(monkeypatch, tmp_path):
    """A small archive that counts as the official one of cifar10."""
    path = pack(tmp_path / "given" / "cifar-10-binary.tar.gz", contents("cifar10"))
    accept(monkeypatch, path)
    return path


def nothing_finished(data_dir):
    return not list(data_dir.rglob("dataset_info.json")) and not list(data_dir.rglob(".*"))


def records(name, data_dir, split):
    import tensorflow_datasets as tfds

    return list(tfds.builder(name, data_dir=data_dir).as_data_source(split))


def test_what_is_official_comes_from_tfds():
    ten, hundred = OFFICIAL["cifar10"], OFFICIAL["cifar100"]
    assert ten.url == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    assert (ten.size, ten.version) == (170_052_171, "3.0.2")
    assert ten.sha256 == "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
    assert hundred.file_name == "cifar-100-binary.tar.gz"
    assert hundred.label_keys == ("coarse_label", "label")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_every_record_arrives_in_the_order_of_tfds(monkeypatch, tmp_path, name, capfd):
    from tensorflow_datasets.core import hashing

    files = contents(name)
    accept(monkeypatch, path := pack(tmp_path / "a.tar.gz", files), name)
    layout = OFFICIAL[name]
    folder = cifar.prepare_cifar(name, tmp_path / "tfds", archive=path)
    assert folder == tmp_path / "tfds" / name / "3.0.2"
    assert capfd.readouterr().out == ""
    for split, parts in layout.files.items():
        binary = b"".join(files[layout.prefix + part] for part in parts)
        rows = np.frombuffer(binary, np.uint8).reshape(EXAMPLES[split], -1)
        hasher = hashing.Hasher(split)
        order = sorted(range(len(rows)), key=hasher.hash_key)
        found = records(name, tmp_path / "tfds", split)
        assert [one["id"].decode() for one in found] == [f"{split}_{i:05d}" for i in order]
        for index, one in zip(order, found, strict=True):
            labels = [one[key] for key in layout.label_keys]
            assert labels == rows[index, : len(labels)].tolist()
            pixels = one["image"].transpose(2, 0, 1).ravel()
            np.testing.assert_array_equal(pixels, rows[index, len(labels) :])


def test_official_order_of_the_real_set_is_kept():
    """TFDS's copy of CIFAR-10 starts with these; the order decides what train[:45000] holds."""
    from tensorflow_datasets.core import hashing

    hasher = hashing.Hasher("train")
    first = sorted(range(50_000), key=hasher.hash_key)[:3]
    assert first == [16399, 1680, 47917]


def test_class_names_and_labels_reach_load_dataset(monkeypatch, tmp_path):
    files = contents("cifar100")
    place = tmp_path / "tfds" / "downloads" / "manual" / "cifar-100-binary.tar.gz"
    accept(monkeypatch, pack(place, files), "cifar100")
    splits = {"train": "train[:200]", "validation": "train[200:]", "test": "test"}
    data = load_dataset("cifar100", splits=splits, data_dir=str(tmp_path / "tfds"))
    assert data.class_names == tuple(f"fine{i}" for i in range(100))
    assert [len(data.splits[role]) for role in splits] == [200, 50, 10]
    fine = np.frombuffer(files["cifar-100-binary/test.bin"], np.uint8).reshape(10, -1)[:, 1]
    assert sorted(data.splits["test"].labels) == sorted(fine)


def test_archive_put_there_by_hand_is_used_and_kept(archive, tmp_path):
    place = tmp_path / "tfds" / "downloads" / "manual" / archive.name
    place.parent.mkdir(parents=True)
    shutil.copy(archive, place)
    cifar.prepare_cifar("cifar10", tmp_path / "tfds")
    assert len(records("cifar10", tmp_path / "tfds", "test")) == 10
    assert place.exists()


def test_prepared_set_is_left_alone(archive, tmp_path):
    folder = cifar.prepare_cifar("cifar10", tmp_path, archive=archive)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert cifar.prepare_cifar("cifar10", tmp_path, archive=tmp_path / "none") == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("change", ["one bit", "shorter", "absent"])
def test_wrong_archives_are_refused(archive, tmp_path, change):
    data = bytearray(archive.read_bytes())
    if change == "one bit":
        data[1000] ^= 1
    archive.write_bytes(data[:-7] if change == "shorter" else data)
    if change == "absent":
        archive.unlink()
    says = {"one bit": "SHA-256", "shorter": f"{len(data) - 7} bytes", "absent": "can't be read"}
    with pytest.raises(DataError, match=says[change]) as caught:
        cifar.prepare_cifar("cifar10", tmp_path / "tfds", archive=archive)
    assert str(archive) in str(caught.value)
    assert nothing_finished(tmp_path / "tfds")


@pytest.mark.parametrize("change", ["missing", "short", "link", "long names", "cut", "not a tar"])
def test_archives_with_other_contents_are_refused(monkeypatch, tmp_path, change):
    files, links = contents("cifar10"), []
    victim = "cifar-10-batches-bin/data_batch_3.bin"
    if change in ("missing", "link"):
        del files[victim]
        links = [(victim, "/etc/passwd")] if change == "link" else []
    elif change == "short":
        files[victim] = files[victim][:-1]
    elif change == "long names":
        victim = "cifar-10-batches-bin/batches.meta.txt"
        files[victim] = b"x" * 70_000
    path = pack(tmp_path / "a.tar.gz", files, links)
    if change == "cut":
        path.write_bytes(path.read_bytes()[:-2000])
    elif change == "not a tar":
        path.write_bytes(b"<html>moved</html>")
    accept(monkeypatch, path)
    damaged = change in ("cut", "not a tar")
    with pytest.raises(DataError, match="is damaged" if damaged else victim):
        cifar.prepare_cifar("cifar10", tmp_path / "tfds", archive=path)
    assert nothing_finished(tmp_path / "tfds")


def test_members_elsewhere_in_the_archive_are_never_written(monkeypatch, tmp_path):
    files = {"../evil": b"x", "/abs": b"y", "cifar-10-batches-bin/readme.html": b"z"}
    path = pack(tmp_path / "a" / "a.tar.gz", {**files, **contents("cifar10")})
    accept(monkeypatch, path)
    cifar.prepare_cifar("cifar10", tmp_path / "a" / "tfds", archive=path)
    assert not list(tmp_path.rglob("*evil*"))
    assert not list(tmp_path.rglob("readme.html"))


def test_interrupted_preparation_leaves_nothing_behind(archive, monkeypatch, tmp_path):
    real = cifar.examples

    def fail_late(binary, label_keys, split):
        for number, one in enumerate(real(binary, label_keys, split)):
            if split == "test" and number == 5:
                raise KeyboardInterrupt
            yield one

    monkeypatch.setattr(cifar, "examples", fail_late)
    with pytest.raises(KeyboardInterrupt):
        cifar.prepare_cifar("cifar10", tmp_path / "tfds", archive=archive)
    assert nothing_finished(tmp_path / "tfds")
    monkeypatch.setattr(cifar, "examples", real)
    cifar.prepare_cifar("cifar10", tmp_path / "tfds", archive=archive)
    assert len(records("cifar10", tmp_path / "tfds", "train")) == 250


def test_folder_of_a_killed_preparation_is_not_a_data_set(archive, tmp_path):
    """A killed process leaves TFDS's temporary folder and a partial download."""
    left = tmp_path / "tfds" / "cifar10" / "incomplete.ABC123_3.0.2"
    left.mkdir(parents=True)
    (left / "cifar10-train.array_record-00000-of-00001").write_bytes(b"half")
    manual = tmp_path / "tfds" / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / f".{archive.name}.0a1b2c3d{TEMPORARY_SUFFIX}").write_bytes(b"half")
    shutil.copy(archive, manual)
    data = load_dataset("cifar10", splits={"test": "test"}, data_dir=str(tmp_path / "tfds"))
    assert len(data.splits["test"]) == 10


def test_unfinished_final_folder_is_named(archive, tmp_path):
    (tmp_path / "tfds" / "cifar10" / "3.0.2").mkdir(parents=True)
    with pytest.raises(DataError, match=r"cifar10/3\.0\.2 holds an unfinished data set"):
        load_dataset("cifar10", splits={"test": "test"}, data_dir=str(tmp_path / "tfds"))


def test_folder_that_cannot_be_written_is_a_write_error(archive, tmp_path):
    (tmp_path / "tfds").write_text("a file where the folder should be")
    with pytest.raises(WriteError, match="tfds"):
        cifar.prepare_cifar("cifar10", tmp_path / "tfds", archive=archive)
    with pytest.raises(WriteError, match=r"--config\.data\.dir or TFDS_DATA_DIR"):
        cifar.prepare_cifar("cifar10", tmp_path / "tfds")


def test_other_names_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="cifar1000"):
        cifar.prepare_cifar("cifar1000", tmp_path)


# --- download -------------------------------------------------------------------------------------

real_urlopen = urllib.request.urlopen


@pytest.fixture
def server(archive, monkeypatch):
    """Serve the small archive on this machine; `behaviour` may be set to make the server fail."""

    class Handler(http.server.BaseHTTPRequestHandler):
        behaviour = "good"

        def do_GET(self):
            if self.behaviour == "404":
                self.send_error(404)
                return
            data = archive.read_bytes()
            self.send_response(200)
            if self.behaviour not in ("no length", "endless"):
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.behaviour in ("cut", "no length"):
                data = data[: len(data) // 2]
            elif self.behaviour == "changed":
                data = data[:-1] + b"?"
            elif self.behaviour == "endless":
                data = data * 3
            self.wfile.write(data)

        def log_message(self, *args):
            """Print nothing."""

    monkeypatch.setattr(urllib.request, "urlopen", real_urlopen)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as one:
        threading.Thread(target=one.serve_forever, args=(0.01,), daemon=True).start()
        accept(monkeypatch, archive, url=f"http://127.0.0.1:{one.server_port}/{archive.name}")
        yield Handler
        one.shutdown()


def test_download_ends_in_a_prepared_set(server, tmp_path, caplog):
    (tmp_path / "tfds").mkdir()
    with caplog.at_level(logging.INFO, logger="resnet_jax"):
        data = load_dataset("cifar10", splits={"train": "train"}, data_dir=str(tmp_path / "tfds"))
    assert len(data.splits["train"]) == 250
    assert "100 %" in caplog.text
    manual = tmp_path / "tfds" / "downloads" / "manual"
    assert [path.name for path in manual.iterdir()] == ["cifar-10-binary.tar.gz"]


@pytest.mark.parametrize("behaviour", ["404", "cut", "no length", "changed", "endless"])
def test_failed_downloads_leave_nothing_and_say_why(server, tmp_path, behaviour):
    server.behaviour = behaviour
    with pytest.raises(DataError) as caught:
        cifar.prepare_cifar("cifar10", tmp_path / "tfds")
    message = str(caught.value)
    assert "\n" not in message
    says = {
        "404": "can't be downloaded (Not Found)",
        "cut": "can't be downloaded (",
        "no length": "bytes came where",
        "changed": "gives another file than the official archive (SHA-256",
        "endless": "more bytes came where",
    }
    assert says[behaviour] in message
    assert nothing_finished(tmp_path / "tfds")
    assert not list((tmp_path / "tfds" / "downloads" / "manual").iterdir())


def test_a_server_that_never_answers_is_given_up_on(archive, monkeypatch, tmp_path):
    monkeypatch.setattr(urllib.request, "urlopen", real_urlopen)
    monkeypatch.setattr(cifar_archive, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        accept(monkeypatch, archive, url=f"http://127.0.0.1:{port}/x")
        with pytest.raises(DataError, match="timed out"):
            cifar.prepare_cifar("cifar10", tmp_path / "tfds")
    assert nothing_finished(tmp_path / "tfds")


def test_without_a_network_one_message_says_it_all(monkeypatch, tmp_path):
    asked = []

    def unreachable(url, timeout):
        asked.append(timeout)
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    (tmp_path / "tfds").mkdir()
    with pytest.raises(DataError) as caught:
        load_dataset("cifar10", splits={"train": "train"}, data_dir=str(tmp_path / "tfds"))
    message = str(caught.value)
    for part in (
        "cifar10 isn't prepared",
        OFFICIAL["cifar10"].url,
        "Name or service not known",
        str(tmp_path / "tfds" / "downloads" / "manual" / "cifar-10-binary.tar.gz"),
        "data.dir or TFDS_DATA_DIR",
        "TFDS_DATA_DIR",
    ):
        assert part in message
    assert "\n" not in message
    assert len(asked) == 1
    assert asked[0] <= 30
    assert nothing_finished(tmp_path / "tfds")
