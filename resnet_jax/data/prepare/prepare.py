"""Originals to a prepared TFDS folder in ArrayRecord, without TensorFlow.

Every image is decoded once, to know that it can be. What is written doesn't depend on the number of
processes, and a preparation that was stopped goes on: a shard is whole or isn't there, and the
folder has its name once all of it is.
"""

# ruff: noqa: PLC0415 - TFDS is loaded where it's needed

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from resnet_jax.data.prepare.originals import Collection, open_originals
from resnet_jax.data.prepare.shards import (
    IMAGENET,
    Options,
    Shard,
    features_of,
    noted_of,
    write_shard,
)
from resnet_jax.errors import ConfigError, DataError, PeerError, WriteError
from resnet_jax.utils.files import TEMPORARY_SUFFIX, replace_file
from resnet_jax.utils.subprocess import die_with_parent

_log = logging.getLogger(__name__)

REPORT = "report.json"
_PLAN = "plan.json"
_SHARD_BYTES = 2**27
_VERSION = "1.0.0"


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
    """Write the originals in `source` to `data_dir`/`name`/VERSION; go on where that was stopped.

    Args:
        source: see `open_originals`.
        data_dir: for `config.data.dir`.
        name: of the data set. "imagenet2012" has the version and the features that TFDS gives it.
        options: what is done with images.
        shards: files per split; None is one for 128 MiB of originals.
        workers: processes; -1 is one per core.
        progress: called with the images that are done and all, now and then.

    Returns:
        What report.json says: counts, bytes and digests of files, and what was left out and why.

    Raises:
        ConfigError: the name can't be, or another preparation has begun there.
        DataError: the originals can't be read, or one is damaged.
        WriteError: the folder can't be written.
        PeerError: a process has died.
    """
    _check_name(name)
    collection = open_originals(source)
    _check_names_within(collection)
    version = _official_version() if name == IMAGENET else _VERSION
    final = data_dir / name / version
    if final.resolve().is_relative_to(source.resolve()) and collection.in_folders:
        raise ConfigError(f"{final} would be among the classes in {source}; choose another --out.")
    draft = final.with_name(f"{version}{TEMPORARY_SUFFIX}")
    parts = _divide(name, collection, shards)
    plan = _plan(name, collection, options, {split: len(some) for split, some in parts.items()})
    try:
        if final.exists():
            raise ConfigError(f"{final} is there already; remove it to prepare it anew.")
        draft.mkdir(parents=True, exist_ok=True)
        with _alone(draft):
            _begin(draft, plan)
            results = _write_all(draft, parts, options, workers=workers, progress=progress)
            report = _finish(draft, name, version, collection, parts, results, options)
            os.replace(draft, final)
    except OSError as error:
        raise WriteError(f"{draft} can't be written ({error.strerror or error}).") from error
    return report | {"folder": str(final)}


def _check_name(name: str) -> None:
    from tensorflow_datasets.core import registered

    if not name.isidentifier() or name != name.lower():
        raise ConfigError(f"{name!r} can't be the name of a data set; write it like my_photos.")
    if name != IMAGENET and name in registered.list_imported_builders():
        raise ConfigError(
            f"{name!r} is the name of a data set of TFDS, which makes it otherwise; choose another,"
            f" such as my_{name}."
        )


def _check_names_within(collection: Collection) -> None:
    """Refuse names that TFDS couldn't write, or couldn't read again."""
    for split, images in collection.splits.items():
        if split == "all" or not re.fullmatch(r"[\w-]+", split):
            raise DataError(
                f"the folder {split!r} can't be the name of a split: write it with letters, digits,"
                " _ and -, and not 'all'."
            )
        for image in images:
            try:
                image.name.encode()
            except UnicodeEncodeError:
                raise DataError(
                    f"the file {image.name!r} has a name that isn't UTF-8; rename it."
                ) from None
    for name in collection.class_names:
        if name != name.strip():
            raise DataError(f"the class {name!r} begins or ends with a space; rename its folder.")


@contextlib.contextmanager
def _alone(draft: Path) -> Iterator[None]:
    """Keep other processes from preparing in the same folder; a lock ends with its process."""
    handle = os.open(draft, os.O_RDONLY)
    try:
        # Some file systems have no locks; there, users must see to it themselves.
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise WriteError(f"another process is preparing {draft}; let it finish.") from None
        yield
    finally:
        os.close(handle)


def _divide(name: str, collection: Collection, shards: int | None) -> dict[str, list[Shard]]:
    """Shards of each split, in which images lie in the order of a digest of their names.

    Slices are fair that way, and an image keeps its place whatever else happens to the machine.
    """
    parts = {}
    for split, images in collection.splits.items():
        ordered = sorted(images, key=lambda image: _digest(image.name))
        total = sum(image.length for image in images)
        count = min(len(images), shards or max(1, round(total / _SHARD_BYTES)))
        edges = [round(i * len(ordered) / count) for i in range(count + 1)]
        parts[split] = [
            Shard(
                f"{name}-{split}.array_record-{number:05d}-of-{count:05d}",
                *(name, split, ordered[start:stop], collection.class_names),
            )
            for number, (start, stop) in enumerate(itertools.pairwise(edges))
        ]
    return parts


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _plan(
    name: str, collection: Collection, options: Options, shards: Mapping[str, int]
) -> dict[str, Any]:
    """What must be the same when a preparation goes on.

    Neither the lengths of images nor what a damaged one does: once it has ended a preparation, it
    may be repaired or left out without losing the shards that are finished.
    """
    images = {
        split: _digest(repr(sorted((image.name, image.label) for image in some)))
        for split, some in collection.splits.items()
    }
    classes = _digest("\n".join(collection.class_names))
    scaling = {"size": options.size, "quality": options.quality}
    return {"name": name, "classes": classes, "images": images, "shards": shards, **scaling}


def _begin(draft: Path, plan: Mapping[str, Any]) -> None:
    """Note what is prepared in the folder, or find that it's the same."""
    path = draft / _PLAN
    text = json.dumps(plan, indent=1, sort_keys=True)
    if path.exists():
        if path.read_text() != text:
            raise ConfigError(
                f"{draft} is of another preparation: of other images, or with other options. Remove"
                " it to begin anew."
            )
        _log.info("going on in %s", draft)
        return
    replace_file(path, [text.encode()])


def _write_all(
    draft: Path,
    parts: Mapping[str, Sequence[Shard]],
    options: Options,
    *,
    workers: int,
    progress: Callable[[int, int], None],
) -> dict[str, dict[str, Any]]:
    """Write the shards that aren't there, several at a time; what was noted of each, by file."""
    every = [shard for some in parts.values() for shard in some]
    total, done = sum(len(shard.images) for shard in every), 0
    results: dict[str, dict[str, Any]] = {}
    left = []
    for shard in every:
        if noted := noted_of(draft, shard, options):
            results[shard.file] = noted
            done += len(shard.images)
        else:
            left.append(shard)
    progress(done, total)
    count = min(len(left), (os.cpu_count() or 1) if workers < 0 else max(1, workers)) or 1
    pool = concurrent.futures.ProcessPoolExecutor(
        count, multiprocessing.get_context("spawn"), initializer=die_with_parent
    )
    try:
        futures = {pool.submit(write_shard, draft, shard, options): shard for shard in left}
        for future in concurrent.futures.as_completed(futures):
            shard = futures[future]
            results[shard.file] = future.result()
            done += len(shard.images)
            progress(done, total)
    except BrokenProcessPool as error:
        raise PeerError(
            "A process that prepares images has died. What is written is intact; the same command"
            " goes on."
        ) from error
    finally:
        processes = list((pool._processes or {}).values())  # the pool forgets them as it shuts down
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()  # what it was writing is a draft
    return results


def _official_version() -> str:
    from tensorflow_datasets.core import registered

    return str(registered.imported_builder_cls(IMAGENET).VERSION)


def _finish(
    draft: Path,
    name: str,
    version: str,
    collection: Collection,
    parts: Mapping[str, Sequence[Shard]],
    results: Mapping[str, dict[str, Any]],
    options: Options,
) -> dict[str, Any]:
    """Describe the set as TFDS does, write the report, and remove what was of use on the way."""
    import tensorflow_datasets as tfds

    if not any(result["examples"] for result in results.values()):
        raise DataError("none of the images can be used.")
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name,
        version=tfds.core.Version(version),
        data_dir=str(draft),
        module_name=f"tensorflow_datasets.datasets.{name}" if name == IMAGENET else __name__,
    )
    info = tfds.core.DatasetInfo(
        builder=identity, features=features_of(name, collection.class_names), description=name
    )
    splits = []
    for split, shards in parts.items():
        of_split = [results[shard.file] for shard in shards]
        template = tfds.core.ShardedFileTemplate(
            data_dir=draft, dataset_name=name, split=split, filetype_suffix="array_record"
        )
        splits.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[result["examples"] for result in of_split],
                num_bytes=sum(result["bytes"] for result in of_split),
                filename_template=template,
            )
        )
    info.set_splits(tfds.core.SplitDict(splits))
    info.set_file_format("array_record")
    report = {
        "options": dataclasses.asdict(options),
        "splits": {split.name: split.num_examples for split in splits},
        "classes": _by_class(collection.class_names, parts, results),
        "files": {file: result["sha256"] for file, result in sorted(results.items())},
        "bytes": sum(result["bytes"] for result in results.values()),
        "bad": [bad for _, result in sorted(results.items()) for bad in result["bad"]],
    }
    replace_file(draft / REPORT, [json.dumps(report, indent=1, ensure_ascii=False).encode()])
    info.write_to_directory(str(draft))
    for path in draft.glob(f"*{TEMPORARY_SUFFIX}"):
        path.unlink()
    (draft / _PLAN).unlink()
    return report


def _by_class(
    class_names: Sequence[str],
    parts: Mapping[str, Sequence[Shard]],
    results: Mapping[str, dict[str, Any]],
) -> dict[str, dict[str, int]]:
    """Images of each class, by split."""
    counted = {}
    for split, shards in parts.items():
        counts: Counter[str] = Counter()
        for shard in shards:
            counts.update(results[shard.file]["classes"])
        counted[split] = {name: counts[str(label)] for label, name in enumerate(class_names)}
    return counted
