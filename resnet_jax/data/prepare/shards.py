"""Shards of a prepared set: some images in one ArrayRecord file, which is complete or missing.

Until the set is finished, a note beside each shard tells what it contains and was made of.
"""

# ruff: noqa: PLC0415 - TFDS and Pillow are imported in the processes that write

import dataclasses
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resnet_jax.data.prepare.originals import Original
from resnet_jax.data.readers.skipped import CorruptPolicy
from resnet_jax.errors import ConfigError, DataError, WriteError
from resnet_jax.utils.files import TEMPORARY_SUFFIX, replace_file

IMAGENET = "imagenet2012"


@dataclasses.dataclass(frozen=True)
class Options:
    """Processing of the images.

    Attributes:
        size: the shorter side, in pixels, to which larger images are scaled; None keeps all images
            byte for byte.
        quality: JPEG quality of scaled images, 1 to 100.
        corrupt: what a damaged image does: "stop" raises an error, "skip" leaves the image out.

    Raises:
        ConfigError: a field has an impossible value.
    """

    size: int | None = None
    quality: int = 90
    corrupt: CorruptPolicy = "stop"

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.size is not None and self.size < 1:
            raise ConfigError(f"size is {self.size}; it must be at least 1.")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"quality is {self.quality}; it is 1 to 100.")


@dataclasses.dataclass(frozen=True)
class Shard:
    """The images that a process writes to one file."""

    file: str
    name: str  # of the data set
    split: str
    images: Sequence[Original]
    class_names: tuple[str, ...]

    @property
    def originals(self) -> str:
        """A digest of the images' names, labels and lengths."""
        images = repr([(image.name, image.label, image.length) for image in self.images])
        digest = hashlib.blake2b(images.encode(), digest_size=16)
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class ShardNote:
    """The content of a finished shard."""

    originals: str  # `Shard.originals` when the shard was written
    sha256: str  # of the file
    examples: int
    bytes: int  # of all records
    classes: Mapping[str, int]  # label → examples
    bad: Sequence[Mapping[str, str]]  # image, split and reason of each image that was left out


def read_note(draft: Path, shard: Shard, options: Options) -> ShardNote | None:
    """Return the note of a shard that is finished and valid, else None.

    A shard isn't valid if its file or an original has changed, or if it lacks damaged images that
    `options` doesn't allow to leave out.
    """
    path = draft / shard.file
    try:
        note = ShardNote(**json.loads(_note_path(path).read_text()))
        if note.originals != shard.originals or (note.bad and options.corrupt != "skip"):
            return None
        with path.open("rb") as file:
            intact = hashlib.file_digest(file, "sha256").hexdigest() == note.sha256
    except (OSError, ValueError, TypeError):
        return None
    return note if intact else None


def _note_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json{TEMPORARY_SUFFIX}")


def write_shard(draft: Path, shard: Shard, options: Options) -> ShardNote:
    """Write a shard and its note to the folder `draft`.

    Raises:
        DataError: an image is damaged and isn't skipped, or its file can't be read.
        WriteError: the shard can't be written.
    """
    from array_record.python import array_record_module
    from tensorflow_datasets.core import example_serializer

    features = features_of(shard.name, shard.class_names)
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    path = draft / shard.file
    temporary = path.with_name(f"{path.name}{TEMPORARY_SUFFIX}")
    counts: Counter[int] = Counter()
    bad, size = [], 0
    try:
        writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1")
        for image in shard.images:
            try:
                data = _process(_content(image), options)
            except DataError as error:
                if options.corrupt != "skip":
                    raise DataError(
                        f"{image.name!r} of {shard.split!r} can't be used: {error}. Repair it, or"
                        " leave out damaged images with --corrupt=skip; finished shards stay."
                    ) from None
                bad.append({"image": image.name, "split": shard.split, "reason": str(error)})
                continue
            example = {"image": data, "label": image.label, "file_name": image.name}
            proto = serializer.get_tf_example(features.encode_example(example))
            # Deterministic: otherwise the order of the fields differs between processes.
            record = proto.SerializeToString(deterministic=True)
            writer.write(record)
            size += len(record)
            counts[image.label] += 1
        writer.close()
        with temporary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        note = ShardNote(
            originals=shard.originals,
            sha256=digest,
            examples=sum(counts.values()),
            bytes=size,
            classes={str(label): count for label, count in sorted(counts.items())},
            bad=bad,
        )
        replace_file(_note_path(path), [json.dumps(dataclasses.asdict(note)).encode()])
    except _UnreadableError as error:
        raise DataError(str(error)) from None
    except (OSError, RuntimeError) as error:  # ArrayRecord raises RuntimeError for a full disk
        raise WriteError(f"{path} can't be written ({error}).") from None
    return note


class _UnreadableError(Exception):
    """A disk or a network fails; the image itself may be intact and isn't left out."""


def _content(image: Original) -> bytes:
    try:
        return image.read()
    except DataError as error:
        if isinstance(error.__cause__, OSError):
            raise _UnreadableError(
                f"{image.name!r} can't be read from {image.path!r}: {error}."
            ) from error
        raise


def _process(data: bytes, options: Options) -> bytes:
    """Decode an image to check it, and return it, scaled if it is larger than `options.size`."""
    from PIL import Image

    from resnet_jax.data.images.image_files import decode_upright

    pixels = decode_upright(data)
    height, width, _ = pixels.shape
    if options.size is None or min(height, width) <= options.size:
        return data
    scale = options.size / min(height, width)
    scaled_size = max(1, round(width * scale)), max(1, round(height * scale))
    scaled = Image.fromarray(pixels).resize(scaled_size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    scaled.save(file, "JPEG", quality=options.quality)
    return file.getvalue()


def features_of(name: str, class_names: Sequence[str]) -> Any:
    """Return TFDS's description of the features: image, label and file name."""
    import tensorflow_datasets as tfds

    label = tfds.features.ClassLabel(names=list(class_names))
    encoding = "jpeg" if name == IMAGENET else None
    image = tfds.features.Image(shape=(None, None, 3), encoding_format=encoding)
    return tfds.features.FeaturesDict(
        {"image": image, "label": label, "file_name": tfds.features.Text()}
    )
