"""Prepares images as a TFDS folder in ArrayRecord format, without TensorFlow.

Every image is decoded once, to check it. The files don't depend on the number of processes. An
interrupted preparation can be resumed: a shard is complete or missing, and the folder gets its
name when all shards are complete.
"""

import concurrent.futures
import contextlib
import fcntl
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from resnet_jax.data.prepare.metadata import write_metadata, write_report
from resnet_jax.data.prepare.originals import open_originals
from resnet_jax.data.prepare.plan import check_names, describe, divide, version_of
from resnet_jax.data.prepare.shards import Options, Shard, ShardNote, read_note, write_shard
from resnet_jax.errors import ConfigError, DataError, PeerError, WriteError
from resnet_jax.utils.files import TEMPORARY_SUFFIX, replace_file
from resnet_jax.utils.subprocess import die_with_parent

_log = logging.getLogger(__name__)

_PLAN = "plan.json"


def prepare(
    source: Path,
    data_dir: Path,
    name: str,
    options: Options,
    *,
    shards: int | None = None,
    workers: int = -1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write the images in `source` to `data_dir`/`name`/VERSION, or resume an interrupted run.

    Args:
        source: folder of the images; see `open_originals`.
        data_dir: folder of prepared sets, for `config.data.dir`.
        name: the data set's name. "imagenet2012" has TFDS's version and features.
        options: processing of the images.
        shards: files per split; None is one file per 128 MiB of originals.
        workers: number of processes; -1 is one per core.
        progress: called with the numbers of finished and of all images, after each shard.

    Returns:
        The content of report.json, and "folder".

    Raises:
        ConfigError: an impossible name, or another preparation has begun in this folder.
        DataError: the images can't be read, or an image is damaged.
        WriteError: the folder can't be written.
        PeerError: a process has died.
    """
    version = version_of(name)
    collection = open_originals(source)
    check_names(collection)
    final = data_dir / name / version
    if final.resolve().is_relative_to(source.resolve()) and collection.in_folders:
        raise ConfigError(f"{final} would be among the classes in {source}; choose another --out.")
    draft = final.with_name(f"{version}{TEMPORARY_SUFFIX}")
    parts = divide(name, collection, shards)
    try:
        if final.exists():
            raise ConfigError(f"{final} is there already; remove it to prepare it anew.")
        draft.mkdir(parents=True, exist_ok=True)
        with _lock(draft):
            _begin(draft, describe(name, collection, options, parts))
            by_file = _write_shards(draft, parts, options, workers=workers, progress=progress)
            notes = {split: [by_file[s.file] for s in shards] for split, shards in parts.items()}
            if not any(note.examples for note in by_file.values()):
                raise DataError("none of the images can be used.")
            report = write_report(draft, options, collection.class_names, parts, notes)
            write_metadata(draft, name, version, collection.class_names, notes)
            for path in [*draft.glob(f"*{TEMPORARY_SUFFIX}"), draft / _PLAN]:
                path.unlink()
            os.replace(draft, final)
    except OSError as error:
        raise WriteError(f"{draft} can't be written ({error.strerror or error}).") from error
    return report | {"folder": str(final)}


@contextlib.contextmanager
def _lock(draft: Path) -> Iterator[None]:
    """Keep other processes from preparing in the same folder; the lock ends with the process."""
    handle = os.open(draft, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems don't support locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise WriteError(f"another process is preparing {draft}; let it finish.") from None
        yield
    finally:
        os.close(handle)


def _begin(draft: Path, plan: str) -> None:
    """Write the plan to the folder, or check that the folder has the same plan."""
    path = draft / _PLAN
    if not path.exists():
        replace_file(path, [plan.encode()])
    elif path.read_text() == plan:
        _log.info("resuming the preparation in %s", draft)
    else:
        raise ConfigError(
            f"{draft} is of another preparation: of other images, or with other options. Remove"
            " it to begin anew."
        )


def _write_shards(
    draft: Path,
    parts: Mapping[str, Sequence[Shard]],
    options: Options,
    *,
    workers: int,
    progress: Callable[[int, int], None],
) -> dict[str, ShardNote]:
    """Write the missing shards, several at a time; return the notes of all shards by file."""
    shards = [shard for split_shards in parts.values() for shard in split_shards]
    total, done = sum(len(shard.images) for shard in shards), 0
    notes: dict[str, ShardNote] = {}
    missing = []
    for shard in shards:
        if note := read_note(draft, shard, options):
            notes[shard.file] = note
            done += len(shard.images)
        else:
            missing.append(shard)
    progress(done, total)
    count = min(len(missing), (os.cpu_count() or 1) if workers < 0 else max(1, workers)) or 1
    pool = concurrent.futures.ProcessPoolExecutor(
        count, multiprocessing.get_context("spawn"), initializer=die_with_parent
    )
    try:
        futures = {pool.submit(write_shard, draft, shard, options): shard for shard in missing}
        for future in concurrent.futures.as_completed(futures):
            shard = futures[future]
            notes[shard.file] = future.result()
            done += len(shard.images)
            progress(done, total)
    except BrokenProcessPool as error:
        raise PeerError(
            "A process that prepares images has died. Finished shards are intact; run the same"
            " command to resume."
        ) from error
    finally:
        processes = list((pool._processes or {}).values())  # shutdown clears this dictionary
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()  # an unfinished shard has a temporary name
    return notes
