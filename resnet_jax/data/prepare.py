"""Originals to a prepared TFDS folder in ArrayRecord, without TensorFlow.

Every image is decoded once, to know that it can be. What is written doesn't depend on the number of
processes, and a preparation that was stopped goes on: a shard is whole or isn't there, and the
folder has its name once all of it is.
"""

# ruff: noqa: PLC0415 - TFDS and Pillow are loaded where they're needed, which may be a process

import concurrent.futures
import dataclasses
import hashlib
import io
import itertools
import json
import logging
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from resnet_jax.children import die_with_parent
from resnet_jax.data.originals import Collection, Original, open_originals
from resnet_jax.data.skipped import CorruptPolicy
from resnet_jax.errors import ConfigError, DataError, PeerError, WriteError
from resnet_jax.files import DRAFT, replace_file

_log = logging.getLogger(__name__)

REPORT = "report.json"
_PLAN = "plan.json"
_SHARD_BYTES = 2**27
_VERSION = "1.0.0"
_IMAGENET = "imagenet2012"


@dataclasses.dataclass(frozen=True)
class Options:
    """What is done with images.

    Attributes:
        size: pixels of the shorter side to which larger ones are scaled; None leaves all as they
            are, byte for byte.
        quality: of JPEGs that are written anew.
        corrupt: "stop" or "skip", what a damaged image does.
    """

    size: int | None = None
    quality: int = 90
    corrupt: CorruptPolicy = "stop"

    def __post_init__(self) -> None:
        """Refuse what can't be."""
        if self.size is not None and self.size < 1:
            raise ConfigError(f"size is {self.size}; it must be at least 1.")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"quality is {self.quality}; it is 1 to 100.")


@dataclasses.dataclass(frozen=True)
class _Shard:
    """What a process writes: some of the images of a split."""

    split: str
    number: int
    images: Sequence[Original]
    class_names: tuple[str, ...]


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
    version = _official_version() if name == _IMAGENET else _VERSION
    final = data_dir / name / version
    if final.exists():
        raise ConfigError(f"{final} is there already; remove it to prepare it anew.")
    draft = final.with_name(f"{version}{DRAFT}")
    parts = _divide(collection, shards)
    plan = _plan(name, collection, options, {split: len(some) for split, some in parts.items()})
    try:
        _begin(draft, plan)
        results = _write_all(draft, name, parts, options, workers=workers, progress=progress)
        report = _finish(draft, name, version, collection, parts, results, options)
        os.replace(draft, final)
    except OSError as error:
        raise WriteError(f"{draft} can't be written ({error.strerror or error}).") from error
    return report | {"folder": str(final)}


def _check_name(name: str) -> None:
    from tensorflow_datasets.core import registered

    if not name.isidentifier() or name != name.lower():
        raise ConfigError(f"{name!r} can't be the name of a data set; write it like my_photos.")
    if name != _IMAGENET and name in registered.list_imported_builders():
        raise ConfigError(
            f"{name!r} is the name of a data set of TFDS, which makes it otherwise; choose another,"
            f" such as my_{name}."
        )


def _divide(collection: Collection, shards: int | None) -> dict[str, list[_Shard]]:
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
            _Shard(split, number, ordered[start:stop], collection.class_names)
            for number, (start, stop) in enumerate(itertools.pairwise(edges))
        ]
    return parts


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=16).hexdigest()


def _plan(
    name: str, collection: Collection, options: Options, shards: Mapping[str, int]
) -> dict[str, Any]:
    """What must be the same when a preparation goes on."""
    images = {
        split: _digest(repr(sorted((i.name, i.label, i.length) for i in some)))
        for split, some in collection.splits.items()
    }
    classes = _digest("\n".join(collection.class_names))
    options_ = dataclasses.asdict(options)
    return {"name": name, "classes": classes, "images": images, "shards": shards, **options_}


def _begin(draft: Path, plan: Mapping[str, Any]) -> None:
    """Make the folder, or find that it's of the same preparation."""
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
    draft.mkdir(parents=True, exist_ok=True)
    replace_file(path, [text.encode()])


def _write_all(
    draft: Path,
    name: str,
    parts: Mapping[str, Sequence[_Shard]],
    options: Options,
    *,
    workers: int,
    progress: Callable[[int, int], None],
) -> dict[tuple[str, int], dict[str, Any]]:
    """Write the shards that aren't there, several at a time; what was noted of each."""
    every = [shard for some in parts.values() for shard in some]
    total, done = sum(len(shard.images) for shard in every), 0
    results: dict[tuple[str, int], dict[str, Any]] = {}
    left = []
    for shard in every:
        if noted := _noted(draft, name, shard, len(parts[shard.split])):
            results[shard.split, shard.number] = noted
            done += len(shard.images)
        else:
            left.append(shard)
    progress(done, total)
    count = min(len(left), (os.cpu_count() or 1) if workers < 0 else max(1, workers)) or 1
    pool = concurrent.futures.ProcessPoolExecutor(
        count, multiprocessing.get_context("spawn"), initializer=die_with_parent
    )
    try:
        futures = {
            pool.submit(_write, draft, name, shard, len(parts[shard.split]), options): shard
            for shard in left
        }
        for future in concurrent.futures.as_completed(futures):
            shard = futures[future]
            results[shard.split, shard.number] = future.result()
            done += len(shard.images)
            progress(done, total)
    except BrokenProcessPool as error:
        raise PeerError(
            "A process that prepares images has died. What is written is intact; the same command"
            " goes on."
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list((pool._processes or {}).values()):
            process.kill()  # what it was writing is a draft
    return results


def _noted(draft: Path, name: str, shard: _Shard, shards: int) -> dict[str, Any] | None:
    """What was noted when a shard was finished, if it is as it was then."""
    path = _shard_path(draft, name, shard, shards)
    try:
        noted = json.loads(_note_of(path).read_text())
        with path.open("rb") as file:
            intact = hashlib.file_digest(file, "sha256").hexdigest() == noted["sha256"]
    except (OSError, ValueError, KeyError):
        return None
    return noted if intact else None


def _shard_path(draft: Path, name: str, shard: _Shard, shards: int) -> Path:
    return draft / f"{name}-{shard.split}.array_record-{shard.number:05d}-of-{shards:05d}"


def _note_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json{DRAFT}")


def _write(draft: Path, name: str, shard: _Shard, shards: int, options: Options) -> dict[str, Any]:
    """Write a shard, in a process; returns what is noted of it.

    Raises:
        DataError: an image is damaged, and isn't to be skipped.
        WriteError: it can't be written.
    """
    from array_record.python import array_record_module
    from tensorflow_datasets.core import example_serializer

    features = _features(name, shard.class_names)
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    path = _shard_path(draft, name, shard, shards)
    part = path.with_name(f"{path.name}{DRAFT}")
    counts: Counter[int] = Counter()
    bad, size = [], 0
    try:
        writer = array_record_module.ArrayRecordWriter(str(part), "group_size:1")
        for image in shard.images:
            try:
                data = _prepared(image.read(), options)
            except DataError as error:
                if options.corrupt != "skip":
                    raise DataError(
                        f"{image.name!r} of {shard.split!r} can't be used: {error}. Repair or"
                        " remove it, or leave out what is damaged with --corrupt=skip."
                    ) from None
                bad.append({"image": image.name, "split": shard.split, "reason": str(error)})
                continue
            example = {"image": data, "label": image.label, "file_name": image.name}
            proto = serializer.get_tf_example(features.encode_example(example))
            # Otherwise the order of its fields would be another one in each process.
            record = proto.SerializeToString(deterministic=True)
            writer.write(record)
            size += len(record)
            counts[image.label] += 1
        writer.close()
        with part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.replace(part, path)
        noted = {
            "file": path.name,
            "sha256": digest,
            "examples": sum(counts.values()),
            "bytes": size,
            "classes": {str(label): count for label, count in sorted(counts.items())},
            "bad": bad,
        }
        replace_file(_note_of(path), [json.dumps(noted).encode()])
    except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError in ArrayRecord
        raise WriteError(f"{path} can't be written ({error}).") from None
    return noted


def _prepared(data: bytes, options: Options) -> bytes:
    """The image as it is to be kept, once it has been decoded.

    Raises:
        DataError: it can't be.
    """
    from PIL import Image

    from resnet_jax.data.image_files import decode_upright

    pixels = decode_upright(data)
    height, width, _ = pixels.shape
    if options.size is None or min(height, width) <= options.size:
        return data
    scale = options.size / min(height, width)
    fitting = max(1, round(width * scale)), max(1, round(height * scale))
    scaled = Image.fromarray(pixels).resize(fitting, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    scaled.save(file, "JPEG", quality=options.quality)
    return file.getvalue()


def _features(name: str, class_names: Sequence[str]) -> Any:
    """The features of the set, as TFDS describes them."""
    import tensorflow_datasets as tfds

    label = tfds.features.ClassLabel(names=list(class_names))
    encoding = "jpeg" if name == _IMAGENET else None
    image = tfds.features.Image(shape=(None, None, 3), encoding_format=encoding)
    return tfds.features.FeaturesDict(
        {"image": image, "label": label, "file_name": tfds.features.Text()}
    )


def _official_version() -> str:
    from tensorflow_datasets.core import registered

    return str(registered.imported_builder_cls(_IMAGENET).VERSION)


def _finish(
    draft: Path,
    name: str,
    version: str,
    collection: Collection,
    parts: Mapping[str, Sequence[_Shard]],
    results: Mapping[tuple[str, int], dict[str, Any]],
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
        module_name=f"tensorflow_datasets.datasets.{name}" if name == _IMAGENET else __name__,
    )
    info = tfds.core.DatasetInfo(
        builder=identity, features=_features(name, collection.class_names), description=name
    )
    splits = []
    for split, shards in parts.items():
        of_split = [results[split, shard.number] for shard in shards]
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
        "files": {r["file"]: r["sha256"] for _, r in sorted(results.items())},
        "bytes": sum(result["bytes"] for result in results.values()),
        "bad": [bad for _, result in sorted(results.items()) for bad in result["bad"]],
    }
    replace_file(draft / REPORT, [json.dumps(report, indent=1, ensure_ascii=False).encode()])
    info.write_to_directory(str(draft))
    for path in draft.glob(f"*{DRAFT}"):
        path.unlink()
    (draft / _PLAN).unlink()
    return report


def _by_class(
    class_names: Sequence[str],
    parts: Mapping[str, Sequence[_Shard]],
    results: Mapping[tuple[str, int], dict[str, Any]],
) -> dict[str, dict[str, int]]:
    """Images of each class, by split."""
    counted = {}
    for split in parts:
        counts: Counter[str] = Counter()
        for (of, _), result in results.items():
            if of == split:
                counts.update(result["classes"])
        counted[split] = {name: counts[str(label)] for label, name in enumerate(class_names)}
    return counted
