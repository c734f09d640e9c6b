"""Files of a work directory, also in buckets whose clients fail; see tests/fake_bucket.py."""

import errno

import jax.numpy as jnp
import pytest
from etils import epath

from resnet_jax.checkpoint.checkpointer import Checkpointer
from resnet_jax.checkpoint.workdir import (
    CHECKPOINTS,
    CONFIG,
    check_config,
    prepare_workdir,
    read_config,
    remove_temporary_files,
    write_atomically,
)
from resnet_jax.errors import ConfigError, WriteError
from resnet_jax.utils.paths import as_path
from tests.fake_bucket import BucketFileSystem, ClientError, with_s3

WORKDIR = epath.Path("gs://bucket/failing")


@pytest.fixture
def failing(bucket, monkeypatch):
    """A function that makes all calls of the client raise the given error."""

    def set_error(error: BaseException) -> None:
        def fault(call, path):
            raise error

        monkeypatch.setattr(BucketFileSystem, "fault", staticmethod(fault))

    return set_error


def never_asked(old: str, new: str) -> list[str]:
    raise AssertionError("there is nothing to compare")


def test_a_refused_write_is_an_os_error_and_the_old_file_stays(bucket, failing):
    write_atomically(WORKDIR / "notes", "old")
    failing(ClientError("Quota exceeded,\n  429"))
    with pytest.raises(OSError, match="notes") as caught:
        write_atomically(WORKDIR / "notes", "new")
    assert caught.value.strerror == "Quota exceeded, 429"
    assert isinstance(caught.value.__cause__, ClientError)
    assert (bucket / "failing" / "notes").read_text() == "old"


@pytest.mark.parametrize(
    ("raised", "kind", "strerror"),
    [
        (FileNotFoundError("b/x"), FileNotFoundError, "No such file or directory: b/x"),
        (PermissionError("Access\nDenied"), PermissionError, "Permission denied: Access Denied"),
        (TimeoutError(), TimeoutError, "Connection timed out"),
        (OSError("Forbidden:\n\nb/x"), OSError, "Forbidden: b/x"),
        (OSError(errno.ENOSPC, "full"), OSError, "full"),
        (ClientError(), OSError, "ClientError"),
    ],
)
def test_the_reason_is_one_line_and_the_kind_of_an_os_error_stays(failing, raised, kind, strerror):
    failing(raised)
    with pytest.raises(OSError, match="notes|full") as caught:
        write_atomically(WORKDIR / "notes", "new")
    assert type(caught.value) is kind
    assert caught.value.strerror == strerror


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), ImportError("Please install gcsfs")])
def test_what_is_no_error_of_the_client_passes(failing, raised):
    failing(raised)
    with pytest.raises(type(raised)) as caught:
        write_atomically(WORKDIR / "notes", "new")
    assert caught.value is raised


def test_a_directory_that_cannot_be_written_is_refused(failing):
    failing(ClientError("No credentials\nwere found"))
    with pytest.raises(WriteError, match=r"can't be written \(No credentials were found\)"):
        prepare_workdir(WORKDIR)


def test_a_kind_of_bucket_that_takes_no_checkpoints_is_refused(bucket):
    with with_s3(), pytest.raises(WriteError, match="to which Orbax writes no checkpoints"):
        prepare_workdir(epath.Path("s3://bucket/runs/one"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("run[1]", "has brackets in its name"),
        ("of [all-runs]/one", "has brackets in its name"),
        ("run\udcff", "a name that isn't UTF-8"),
    ],
)
def test_a_name_in_which_orbax_cannot_save_is_refused_at_the_start(tmp_path, name, reason):
    with pytest.raises(WriteError, match=f"{reason}.* nothing was started"):
        prepare_workdir(epath.Path(tmp_path) / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["run[1", "r?n*", "run]", "a b", "läufe", "{x}", "%41", "a\nb"])
def test_other_names_are_taken(tmp_path, name):
    workdir = epath.Path(tmp_path) / name
    prepare_workdir(workdir)
    checkpoints = Checkpointer(workdir / CHECKPOINTS, keep=1)
    checkpoints.save(1, {"w": jnp.ones(3)}, progress={}, metrics=None)
    checkpoints.close()
    assert checkpoints.steps() == [1]


def test_the_users_home_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_path("~/runs/one") == epath.Path(tmp_path) / "runs" / "one"
    assert as_path("gs://~/runs") == epath.Path("gs://~/runs")


def test_a_bucket_is_never_made(bucket):
    """Its name may be mistyped."""
    with pytest.raises(WriteError, match="The specified bucket does not exist"):
        prepare_workdir(epath.Path("gs://mistyped/runs/one"))
    assert not (bucket.parent / "mistyped").exists()


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (ClientError("Forbidden,\n 403"), r"failing/config\.json can't be read: Forbidden, 403\."),
        (FileNotFoundError("b/x"), r"failing isn't the directory of a run: config\.json: No such"),
        (ImportError("gcsfs"), r"failing needs a client .* pip install -e '\.\[gcs\]'"),
    ],
)
def test_a_config_that_cannot_be_read(failing, raised, message):
    failing(raised)
    with pytest.raises(ConfigError, match=message):
        read_config(WORKDIR)


def test_a_config_that_is_not_text(bucket):
    write_atomically(WORKDIR / CONFIG, b"\xff")
    with pytest.raises(ConfigError, match="damaged: it isn't text"):
        read_config(WORKDIR)


@pytest.mark.parametrize("broken", ["isdir", "rb"])
def test_a_directory_that_cannot_be_read_is_refused(bucket, monkeypatch, broken):
    workdir = epath.Path("gs://bucket/unreadable")
    write_atomically(workdir / CONFIG, "{}")
    write_atomically(workdir / CHECKPOINTS / "1" / "data", "")

    def fault(call, path):
        if call == broken:
            raise ClientError("Forbidden,\n 403")

    monkeypatch.setattr(BucketFileSystem, "fault", staticmethod(fault))
    with pytest.raises((ConfigError, WriteError), match="Forbidden, 403"):
        check_config(workdir, "{}", never_asked)


def test_drafts_of_killed_processes_are_swept_and_nothing_else_is(bucket):
    workdir = epath.Path("gs://bucket/swept")
    for name in (".write-probe-1.draft", ".mine", "draft"):
        write_atomically(workdir / name, "")
    remove_temporary_files(workdir)
    assert {path.name for path in workdir.iterdir()} == {".mine", "draft"}


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_atomically(path, "old")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_a_save_that_was_killed_does_not_bind_a_directory(tmp_path):
    workdir = epath.Path(tmp_path)
    write_atomically(workdir / CONFIG, "{}")
    left = workdir / CHECKPOINTS / "20.orbax-checkpoint-tmp-1"
    left.mkdir(parents=True)
    assert check_config(workdir, '{"other": 1}', never_asked)
    (workdir / CHECKPOINTS / "20.corrupt").mkdir()
    with pytest.raises(ConfigError, match="another config"):
        check_config(workdir, '{"other": 1}', lambda old, new: ["other"])
