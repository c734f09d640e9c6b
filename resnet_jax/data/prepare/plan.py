"""The plan of a preparation: the names it may use, and the division of images into shards."""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence

from resnet_jax.data.prepare.originals import Collection
from resnet_jax.data.prepare.shards import IMAGENET, Options, Shard
from resnet_jax.errors import ConfigError, DataError

_SHARD_BYTES = 2**27
_VERSION = "1.0.0"


def version_of(name: str) -> str:
    """Return the version of the prepared set; TFDS's version for "imagenet2012".

    Raises:
        ConfigError: `name` can't be the name of a data set, or TFDS uses it for another one.
    """
    # Importing TFDS takes a second.
    from tensorflow_datasets.core import registered  # noqa: PLC0415

    if not name.isidentifier() or name != name.lower():
        raise ConfigError(f"{name!r} can't be the name of a data set; write it like my_photos.")
    if name == IMAGENET:
        return str(registered.imported_builder_cls(IMAGENET).VERSION)
    if name in registered.list_imported_builders():
        raise ConfigError(
            f"{name!r} is the name of a TFDS data set with other files; choose another name, such"
            f" as my_{name}."
        )
    return _VERSION


def check_names(collection: Collection) -> None:
    """Raise DataError for names of splits, files and classes that TFDS can't write or read."""
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


def divide(name: str, collection: Collection, shards: int | None) -> dict[str, list[Shard]]:
    """Divide the images of each split into shards, ordered by a digest of their names.

    Every slice of this order has about the same share of each class. The position of an image
    depends on its name alone.

    Args:
        name: the data set's name.
        collection: the images.
        shards: number of shards per split; None is one shard per 128 MiB of originals.
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


def describe(
    name: str, collection: Collection, options: Options, parts: Mapping[str, Sequence[Shard]]
) -> str:
    """Return a JSON text that must be the same when a preparation resumes.

    The text contains neither the lengths of images nor `options.corrupt`: a damaged image that has
    ended a preparation may be repaired or left out, and finished shards stay.
    """
    images = {
        split: _digest(repr(sorted((image.name, image.label) for image in split_images)))
        for split, split_images in collection.splits.items()
    }
    document = {
        "name": name,
        "classes": _digest("\n".join(collection.class_names)),
        "images": images,
        "shards": {split: len(shards) for split, shards in parts.items()},
        "size": options.size,
        "quality": options.quality,
    }
    return json.dumps(document, indent=1, sort_keys=True)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
