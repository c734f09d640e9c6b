"""Data in a bucket, copied to this host; see tests/fake_bucket.py."""

import io
import os
import secrets
import shutil

import pytest
from etils import epath

from resnet_jax.data import remote_cache
from resnet_jax.errors import DataError
from tests.fake_bucket import BucketFileSystem, ClientError, S3FileSystem, with_s3


@pytest.fixture
def data(bucket, tmp_path, monkeypatch):
    """A folder under flowers/ in the bucket, with the files a and b; copies go to `tmp_path`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = bucket / "data" / secrets.token_hex(4) / "flowers" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "a").write_bytes(b"abc")
    (folder / "b").write_bytes(b"d" * 10)
    return folder


@pytest.fixture(params=["gs", "s3"])
def flowers(request, bucket, data):
    """The URL of flowers/, which holds `data`."""
    with with_s3():
        yield epath.Path(f"{request.param}://bucket/{data.parent.relative_to(bucket)}")


def replace(file, content: bytes) -> None:
    """Replace an object by another version within the same second."""
    changed = file.stat().st_mtime_ns
    file.write_bytes(content)
    another = changed + 1 if (changed + 1) % 10**9 else changed - 1
    os.utime(file, ns=(another, another))


def mark(copied) -> None:
    """Change a copy, to detect whether it is copied again."""
    stat = copied.stat()
    copied.write_bytes(b"m" * stat.st_size)
    os.utime(copied, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_only_what_changed_is_copied_again(data, flowers):
    copy = remote_cache.copy_here(flowers)
    assert copy.name == "flowers"
    assert (copy / "1.0.0" / "a").read_bytes() == b"abc"
    mark(copy / "1.0.0" / "b")
    replace(data / "a", b"abcd")
    assert remote_cache.copy_here(flowers) == copy
    assert (copy / "1.0.0" / "a").read_bytes() == b"abcd"
    assert (copy / "1.0.0" / "b").read_bytes() == b"m" * 10
    assert not list(copy.rglob("*.part"))


def test_a_version_that_was_removed_is_not_used(data, flowers):
    newer = data.parent / "1.1.0"
    newer.mkdir()
    (newer / "a").write_bytes(b"bad")
    copy = remote_cache.copy_here(flowers)
    assert (copy / "1.1.0" / "a").exists()
    (newer / "a").unlink()
    newer.rmdir()
    remote_cache.copy_here(flowers)
    assert [path.name for path in copy.iterdir()] == ["1.0.0"]


def test_a_file_of_the_same_size_that_changed_is_copied_again(data, flowers):
    copy = remote_cache.copy_here(flowers)
    mark(copy / "1.0.0" / "b")
    replace(data / "a", b"xyz")
    remote_cache.copy_here(flowers)
    assert (copy / "1.0.0" / "a").read_bytes() == b"xyz"
    assert (copy / "1.0.0" / "b").read_bytes() == b"m" * 10


def test_files_whose_versions_cannot_be_told_are_copied_each_time(data, flowers, monkeypatch):
    for kind in (BucketFileSystem, S3FileSystem):
        monkeypatch.setattr(kind, "version", staticmethod(lambda *_: {"ETag": "", "mtime": None}))
    copy = remote_cache.copy_here(flowers)
    replace(data / "a", b"xyz")
    remote_cache.copy_here(flowers)
    assert (copy / "1.0.0" / "a").read_bytes() == b"xyz"


def test_a_damaged_length_of_a_copy_is_mended(data, flowers):
    copied = remote_cache.copy_here(flowers) / "1.0.0" / "b"
    stamp = copied.stat().st_mtime_ns
    copied.write_bytes(b"d")
    os.utime(copied, ns=(stamp, stamp))
    remote_cache.copy_here(flowers)
    assert copied.read_bytes() == b"d" * 10


def test_a_folder_that_is_not_there(data, flowers):
    with pytest.raises(FileNotFoundError):
        remote_cache.copy_here(flowers.parent / "none")


@pytest.mark.parametrize("broken", ["find", "rb"])
def test_errors_of_the_client_are_os_errors(data, flowers, monkeypatch, broken):
    """Earlier copies stay."""
    copied = remote_cache.copy_here(flowers) / "1.0.0" / "a"
    replace(data / "a", b"xyz")

    def fault(call, path):
        if call == broken:
            raise ClientError("Too many requests,\n  429")

    monkeypatch.setattr(BucketFileSystem, "fault", staticmethod(fault))
    with pytest.raises(OSError, match="Too many requests, 429"):
        remote_cache.copy_here(flowers)
    assert copied.read_bytes() == b"abc"
    assert not list(copied.parent.glob("*.part"))


def test_a_file_that_changes_while_it_is_copied_is_not_kept(data, flowers, monkeypatch):
    def fault(call, path):
        if call == "rb" and path.endswith("/b"):
            (data / "b").write_bytes(b"longer than before")

    with monkeypatch.context() as patch:
        patch.setattr(BucketFileSystem, "fault", staticmethod(fault))
        with pytest.raises(OSError, match="has 18 bytes where 10 were announced"):
            remote_cache.copy_here(flowers)
    copy = remote_cache.copy_here(flowers)
    assert (copy / "1.0.0" / "b").read_bytes() == b"longer than before"


@pytest.mark.parametrize(
    "name",
    [
        *("../../../stolen", "1.0.0/../../stolen", "/stolen", "1.0.0//stolen", "./stolen"),
        *("..\\stolen", "1.0.0/sto\0len", "1.0.0/\x1b]0;stolen", "/"),
    ],
)
def test_no_object_leaves_the_copy(data, flowers, monkeypatch, tmp_path, name):
    """Nothing is written, whichever object comes first."""
    find = BucketFileSystem.find

    def find_hostile(self, path, **options):
        found = find(self, path, **options)
        root = self._strip_protocol(path)
        hostile = f"{root}/{name}" if name != "/" else f"/{root}x/stolen"
        return found | {hostile: {"name": hostile, "size": 3, "type": "file"}}

    monkeypatch.setattr(BucketFileSystem, "find", find_hostile)
    monkeypatch.setattr(BucketFileSystem, "open", lambda *_, **__: io.BytesIO(b"bad"))
    with pytest.raises(DataError, match=r"has a name that no file can have; nothing was copied"):
        remote_cache.copy_here(flowers)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_links_in_the_cache_are_not_followed(data, flowers, tmp_path):
    copy = remote_cache.copy_here(flowers)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_bytes(b"kept")
    (copy / "1.0.0" / "a").unlink()
    (copy / "1.0.0" / "a").symlink_to(elsewhere / "kept")
    remote_cache.copy_here(flowers)
    assert (copy / "1.0.0" / "a").read_bytes() == b"abc"
    shutil.rmtree(copy / "1.0.0")
    (copy / "1.0.0").symlink_to(elsewhere)
    with pytest.raises(DataError, match="is a link to elsewhere; remove it"):
        remote_cache.copy_here(flowers)
    assert [path.name for path in elsewhere.iterdir()] == ["kept"]
    assert (elsewhere / "kept").read_bytes() == b"kept"
