"""A shard of a prepared set: some images in one ArrayRecord file, which is whole or isn't there.

Beside it, until the set is finished, lies a note of what it holds and of what it was made.
"""

# ruff: noqa: PLC0415 - TFDS and Pillow are loaded in the processes that write

import dataclasses
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_jax.data.prepare.originals import Original
from resnet_jax.data.readers.skipped import CorruptPolicy
from resnet_jax.errors import ConfigError, DataError, WriteError
from resnet_jax.utils.files import TEMPORARY_SUFFIX, replace_file

IMAGENET = "imagenet2012"


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
class Shard:
    """What a process writes: some of the images of a split, to the file of that name."""

    file: str
    name: str  # of the data set
    split: str
    images: Sequence[Original]
    class_names: tuple[str, ...]

    @property
    def originals(self) -> str:
        """A digest of its images' names, labels and lengths."""
        images = repr([(image.name, image.label, image.length) for image in self.images])
        digest = hashlib.blake2b(images.encode(), digest_size=16)
        return digest.hexdigest()


def noted_of(draft: Path, shard: Shard, options: Options) -> dict[str, Any] | None:
    """What was noted when the shard was finished, if it can stay.

    It can't if it has changed since, if an image has, or if it lacks damaged ones that may not be
    left out any more.
    """
    path = draft / shard.file
    try:
        noted: dict[str, Any] = json.loads(_note_of(path).read_text())
        if noted["originals"] != shard.originals or (noted["bad"] and options.corrupt != "skip"):
            return None
        with path.open("rb") as file:
            intact = hashlib.file_digest(file, "sha256").hexdigest() == noted["sha256"]
    except (OSError, ValueError, KeyError):
        return None
    return noted if intact else None


def _note_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json{TEMPORARY_SUFFIX}")


def write_shard(draft: Path, shard: Shard, options: Options) -> dict[str, Any]:
    """Write a shard to the folder `draft`; returns what is noted of it.

    Raises:
        DataError: an image is damaged, and isn't to be skipped, or its file can't be read.
        WriteError: the shard can't be written.
    """
    from array_record.python import array_record_module
    from tensorflow_datasets.core import example_serializer

    features = features_of(shard.name, shard.class_names)
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    path = draft / shard.file
    part = path.with_name(f"{path.name}{TEMPORARY_SUFFIX}")
    counts: Counter[int] = Counter()
    bad, size = [], 0
    try:
        writer = array_record_module.ArrayRecordWriter(str(part), "group_size:1")
        for image in shard.images:
            try:
                data = _prepared(_content(image), options)
            except DataError as error:
                if options.corrupt != "skip":
                    raise DataError(
                        f"{image.name!r} of {shard.split!r} can't be used: {error}. Repair it, or"
                        " leave out what is damaged with --corrupt=skip; finished shards stay."
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
            os.fsync(file.fileno())
        os.replace(part, path)
        noted = {
            "originals": shard.originals,
            "sha256": digest,
            "examples": sum(counts.values()),
            "bytes": size,
            "classes": {str(label): count for label, count in sorted(counts.items())},
            "bad": bad,
        }
        replace_file(_note_of(path), [json.dumps(noted).encode()])
    except _UnreadableError as error:
        raise DataError(str(error)) from None
    except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError in ArrayRecord
        raise WriteError(f"{path} can't be written ({error}).") from None
    return noted


class _UnreadableError(Exception):
    """A disk or a network fails, which is no reason to leave an image out."""


def _content(image: Original) -> bytes:
    try:
        return image.read()
    except DataError as error:
        if isinstance(error.__cause__, OSError):
            raise _UnreadableError(
                f"{image.name!r} can't be read from {image.path!r}: {error}."
            ) from error
        raise


def _prepared(data: bytes, options: Options) -> bytes:
    """The image as it is to be kept, once it has been decoded.

    Raises:
        DataError: it can't be.
    """
    from PIL import Image

    from resnet_jax.data.images.image_files import decode_upright

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


def features_of(name: str, class_names: Sequence[str]) -> Any:
    """The features of the set, as TFDS describes them."""
    import tensorflow_datasets as tfds

    label = tfds.features.ClassLabel(names=list(class_names))
    encoding = "jpeg" if name == IMAGENET else None
    image = tfds.features.Image(shape=(None, None, 3), encoding_format=encoding)
    return tfds.features.FeaturesDict(
        {"image": image, "label": label, "file_name": tfds.features.Text()}
    )
