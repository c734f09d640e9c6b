"""The directory of a run: checked before anything is compiled, and bound to one config.

It may be in a bucket, gs://…, where writing a file replaces it as a whole.
"""

import fnmatch
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from etils import epath

from resnet_jax.errors import ConfigError, WriteError
from resnet_jax.utils.distribution import how_to_add
from resnet_jax.utils.files import DRAFT, replace_file
from resnet_jax.utils.paths import bucket_errors, is_remote

CONFIG = "config.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
NONFINITE = "nonfinite.jsonl"
CURVES = "curves.png"
DIAGNOSTICS = "diagnostics.png"
CHECKPOINTS = "checkpoints"


def write_atomically(path: epath.Path, content: str | bytes) -> None:
    """Replace the file at `path`, so that a reader or a crash sees the old one or the new one.

    Raises:
        OSError: it can't be written; the old file is intact.
        ImportError: the client of that kind of bucket isn't installed.
    """
    data = content.encode() if isinstance(content, str) else content
    if is_remote(path):
        with bucket_errors(path):
            path.write_bytes(data)
    else:
        replace_file(Path(path), [data])


def prepare_workdir(workdir: epath.Path) -> None:
    """Create the directory if need be and prove, by writing, that it can hold results.

    Raises:
        WriteError: it can't.
    """
    if os.fspath(workdir).startswith("s3://"):
        raise WriteError(
            f"Work directory {workdir} is in a kind of bucket to which Orbax writes no checkpoints;"
            " nothing was started. Choose one in gs://…, or on a file system that all hosts share."
        )
    if flaw := _flaw_of_name(workdir):
        raise WriteError(
            f"Work directory {os.fspath(workdir)!r} {flaw}; nothing was started. Choose another"
            " --workdir."
        )
    try:
        with bucket_errors(workdir):
            if not is_remote(workdir):  # there a client would make a mistyped bucket
                workdir.mkdir(parents=True, exist_ok=True)
            probe = workdir / f".write-probe-{secrets.token_hex(8)}{DRAFT}"
            write_atomically(probe, "probe")
            probe.unlink()
    except ImportError:
        raise WriteError(_no_client(workdir)) from None
    except OSError as error:
        raise WriteError(
            f"Work directory {workdir} can't be written ({error.strerror or error}); nothing was"
            " started. Choose another --workdir."
        ) from None


def _flaw_of_name(workdir: epath.Path) -> str:
    """Why checkpoints couldn't be written to a directory of that name; "" if they can be."""
    name = os.fspath(workdir if is_remote(workdir) else workdir.absolute())
    try:
        name.encode()
    except UnicodeEncodeError:
        return "has a name that isn't UTF-8, in which Orbax can't save"
    # Orbax looks for its files by a pattern, in which it leaves the name as it is.
    if not all(fnmatch.fnmatchcase(part, part) for part in name.split("/")):
        return "has brackets in its name, in which Orbax wouldn't find its own files"
    return ""


def sweep_drafts(workdir: epath.Path) -> None:
    """Remove what killed processes left half-written, for the holder of the lock.

    Another run that begins in this very moment may miss its draft and end with a line about that,
    instead of one about the lock.

    Raises:
        WriteError: it can't be seen what the directory holds, or a draft can't be removed.
    """
    try:
        with bucket_errors(workdir):
            for draft in workdir.glob(f".*{DRAFT}"):
                draft.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(
            f"Remains of a killed run in {workdir} can't be removed ({error.strerror or error})."
            f" What was saved is intact; remove the files .*{DRAFT} there."
        ) from None


def _no_client(workdir: epath.Path) -> str:
    extra = "gcs" if os.fspath(workdir).startswith("gs:") else "s3"
    return f"Work directory {workdir} needs a client of that kind of bucket: {how_to_add(extra)}."


def read_config(workdir: epath.Path) -> str:
    """The config of the run in `workdir`, as JSON text.

    Raises:
        ConfigError: there is no run, or its config can't be read.
    """
    path = workdir / CONFIG
    try:
        with bucket_errors(path):
            content = path.read_bytes()
        return content.decode()
    except ImportError:
        raise ConfigError(_no_client(workdir)) from None
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
    """Check that `workdir` is free for a run of this config, or holds one of it already.

    A run that failed before it saved anything has nothing to protect, so that the next attempt
    may mend its config.

    Args:
        workdir: directory of the run.
        config: as JSON text.
        differences: given the old and the new text, says what differs and may not, a line each.

    Returns:
        Whether the run is a new one, whose config is to be written.

    Raises:
        ConfigError: the directory holds another run, or the remains of one; nothing was touched.
        WriteError: it can't be seen what the directory holds; nothing was touched.
    """
    advice = "Nothing was touched; choose another --workdir"
    checkpoints = workdir / CHECKPOINTS
    try:
        with bucket_errors(workdir):
            has_checkpoints = checkpoints.is_dir() and any(checkpoints.iterdir())
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
