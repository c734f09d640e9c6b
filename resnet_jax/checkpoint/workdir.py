"""The directory of a run: checked before anything is compiled, and bound to one config.

It may be in a bucket, gs://…, where every write replaces a file atomically.
"""

import fnmatch
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from etils import epath

from resnet_jax.errors import ConfigError, WriteError
from resnet_jax.utils.distribution import install_hint
from resnet_jax.utils.files import TEMPORARY_SUFFIX, replace_file
from resnet_jax.utils.paths import bucket_errors, is_remote, read_document

CONFIG = "config.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
NONFINITE = "nonfinite.jsonl"
GOODPUT = "goodput.json"
CURVES = "curves.png"
DIAGNOSTICS = "diagnostics.png"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
PROCESS = "process.json"
TRACKERS = "trackers.json"


def write_atomically(path: epath.Path, content: str | bytes) -> None:
    """Replace the file at `path` atomically: a reader or a crash sees the old or the new content.

    Raises:
        OSError: the file can't be written; the old file is intact.
        ImportError: the client of this kind of bucket isn't installed.
    """
    data = content.encode() if isinstance(content, str) else content
    if is_remote(path):
        with bucket_errors(path):
            path.write_bytes(data)
    else:
        replace_file(Path(path), [data])


def prepare_workdir(workdir: epath.Path) -> None:
    """Create the directory if it doesn't exist, and check that it can be written.

    Raises:
        WriteError: it can't be written.
    """
    if os.fspath(workdir).startswith("s3://"):
        raise WriteError(
            f"Work directory {workdir} is in a kind of bucket to which Orbax writes no checkpoints;"
            " nothing was started. Choose one in gs://…, or on a file system that all hosts share."
        )
    if reason := _invalid_name(workdir):
        raise WriteError(
            f"Work directory {os.fspath(workdir)!r} {reason}; nothing was started. Choose another"
            " --workdir."
        )
    try:
        with bucket_errors(workdir):
            if not is_remote(workdir):  # a client would create a mistyped bucket
                workdir.mkdir(parents=True, exist_ok=True)
            probe = workdir / f".write-probe-{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
            write_atomically(probe, "probe")
            probe.unlink()
    except ImportError:
        raise WriteError(no_client(workdir)) from None
    except OSError as error:
        raise WriteError(
            f"Work directory {workdir} can't be written ({error.strerror or error}); nothing was"
            " started. Choose another --workdir."
        ) from None


def _invalid_name(workdir: epath.Path) -> str:
    """Why Orbax can't write checkpoints to a directory of this name; "" if it can."""
    name = os.fspath(workdir if is_remote(workdir) else workdir.absolute())
    try:
        name.encode()
    except UnicodeEncodeError:
        return "has a name that isn't UTF-8, in which Orbax can't save"
    # Orbax finds its files by a glob pattern in which it doesn't escape the name.
    if not all(fnmatch.fnmatchcase(part, part) for part in name.split("/")):
        return "has brackets in its name, in which Orbax wouldn't find its own files"
    return ""


def remove_temporary_files(workdir: epath.Path) -> None:
    """Remove temporary files of killed processes; only the holder of the lock may call this.

    Another run that starts at the same moment may lose its temporary file; its error is then about
    this file instead of the lock.

    Raises:
        WriteError: the directory can't be read, or a temporary file can't be removed.
    """
    try:
        with bucket_errors(workdir):
            for temporary in workdir.glob(f".*{TEMPORARY_SUFFIX}"):
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(
            f"Remains of a killed run in {workdir} can't be removed ({error.strerror or error})."
            f" What was saved is intact; remove the files .*{TEMPORARY_SUFFIX} there."
        ) from None


def no_client(workdir: epath.Path) -> str:
    """The message for a directory in a bucket whose client isn't installed."""
    extra = "gcs" if os.fspath(workdir).startswith("gs:") else "s3"
    return f"Work directory {workdir} needs a client of that kind of bucket: {install_hint(extra)}."


def read_config(workdir: epath.Path) -> str:
    """The config of the run in `workdir`, as JSON text.

    Raises:
        ConfigError: the directory isn't a run's, or the config can't be read.
    """
    path = workdir / CONFIG
    try:
        return read_document(path).decode()
    except ImportError:
        raise ConfigError(no_client(workdir)) from None
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(
            f"{workdir} isn't the directory of a run: {CONFIG}: {error.strerror}."
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is damaged: it isn't text.") from None


def check_config(
    workdir: epath.Path, config: str, differences: Callable[[str, str], Sequence[str]]
) -> bool:
    """Check that `workdir` holds no run, or a run of the same config.

    A run that failed before its first checkpoint doesn't count: the next attempt may have another
    config.

    Args:
        workdir: directory of the run.
        config: as JSON text.
        differences: given the old and the new text, returns the fields that differ and may not
            change, a line each.

    Returns:
        Whether the run is new, so that its config must be written.

    Raises:
        ConfigError: the directory holds another run, or remains of a run; nothing was touched.
        WriteError: the directory can't be read; nothing was touched.
    """
    advice = "Nothing was touched; choose another --workdir"
    checkpoints = workdir / CHECKPOINTS
    try:
        with bucket_errors(workdir):
            has_checkpoints = checkpoints.is_dir() and any(
                path.name.isdecimal() or path.name.endswith(".corrupt")
                for path in checkpoints.iterdir()  # not what a killed save has left
            )
            has_config, has_summary = (workdir / CONFIG).exists(), (workdir / SUMMARY).exists()
    except OSError as error:
        raise WriteError(
            f"Work directory {workdir} can't be read ({error.strerror or error}). {advice}."
        ) from None
    if not has_checkpoints:
        if has_summary:
            raise ConfigError(
                f"{workdir} holds the results of a finished run, whose checkpoints are gone."
                f" {advice}."
            )
        return True
    if not has_config:
        raise ConfigError(
            f"{workdir} holds checkpoints but no {CONFIG}, so it isn't known what they are of."
            f" {advice}."
        )
    try:
        different = differences(read_config(workdir), config)
    except ConfigError as error:
        raise ConfigError(f"{workdir / CONFIG} can't be used: {error} {advice}.") from None
    if different:
        lines = "".join(f"\n  {line}" for line in different)
        raise ConfigError(
            f"{workdir} is a run with another config. {advice}, or undo (old → new):{lines}"
        )
    return False
