"""The metadata of a prepared TFDS folder, checked before TFDS reads them.

TFDS imports the module of every class that features.json names, which runs its code, and believes
the paths and numbers in dataset_info.json.
"""

# ruff: noqa: PLC0415 - TFDS is loaded only when a prepared set is opened

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resnet_jax.data.images.image_files import read_file
from resnet_jax.errors import DataError
from resnet_jax.utils.messages import first_line

_FEATURES = (
    *("FeaturesDict", "Sequence", "Image", "LabeledImage", "ClassLabel", "BBoxFeature"),
    *("Text", "Scalar", "Tensor"),
)

_CLASS_KEYS = ("type", "pythonClassName", "python_class_name")
"""Keys whose values TFDS takes for a class: in its older format, and both spellings of protobuf."""

_NAME = re.compile(r"[\w+-][\w.+-]*")
_TEMPLATE = re.compile(r"(?:[^{}\0\\]|\{[A-Z_]+\})*")  # no format specification: it may pad


def check_metadata(folder: Path, *, within: Path) -> None:
    """Refuse metadata that name code, files elsewhere or impossible numbers.

    Args:
        folder: of one version of a data set, with features.json and dataset_info.json.
        within: the folder of all data sets.

    Raises:
        DataError: the metadata can't be read, or name what they may not. Nothing was run. The
            message says why, for the caller to say of what.
    """
    if not folder.is_relative_to(within) or ".." in folder.relative_to(within).parts:
        raise DataError(f"its .config/metadata.json names a folder outside of {within}: {folder}")
    for labels in folder.glob("*.labels.txt"):
        _read(labels)
    paths = folder / "features.json", folder / "dataset_info.json"
    features, info = map(_document, paths)
    known = _known_features()
    for path, part in zip(paths, (features, info.get("features")), strict=True):
        for key, value in _entries(part):
            # A feature may have such a name too; its value is then an object.
            if key in _CLASS_KEYS and isinstance(value, str) and value not in known:
                raise DataError(
                    f"{path} names the class {value!r}, which is no feature of TFDS for images and"
                    " labels; nothing of it was run"
                )
            if key == "names_file":
                raise DataError(f"{path} names a file of labels elsewhere, {value!r}")
    _check_files(folder, paths[1])


def _known_features() -> set[str]:
    """The names of the features that may be made, and those that they had in older versions."""
    import tensorflow_datasets as tfds

    found = set()
    for name in _FEATURES:
        feature = getattr(tfds.features, name)
        found |= {f"{feature.__module__}.{feature.__name__}", *vars(feature).get("ALIASES", ())}
    return found


def _entries(document: Any) -> Iterator[tuple[str, Any]]:
    """All keys and values of a JSON document, and of the JSON documents in its strings."""
    waiting = [document]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield from part.items()
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
        elif isinstance(part, str):
            try:
                inner = json.loads(part)
            except (ValueError, RecursionError):
                continue
            if not isinstance(inner, str):
                waiting.append(inner)


def _check_files(folder: Path, path: Path) -> None:
    """Refuse files of records outside of `folder`, and lengths that can't be."""
    from tensorflow_datasets.core import dataset_info

    try:
        info = dataset_info.read_proto_from_builder_dir(folder)
    except Exception as error:  # of many kinds, which protobuf's parser raises
        raise DataError(f"{path} is damaged ({first_line(error)})") from error
    names = [("data set", info.name), *(("split", split.name) for split in info.splits)]
    names += [("file format", info.file_format or "array_record")]
    for what, name in names:
        if not _NAME.fullmatch(name):
            raise DataError(f"{path} has {name!r} as the name of a {what}")
    for split in info.splits:
        template = split.filepath_template
        if not _TEMPLATE.fullmatch(template) or ".." in template.split("/") or template[:1] == "/":
            raise DataError(f"{path} names files outside of its folder: {template!r}")
        if any(length < 0 for length in split.shard_lengths):
            raise DataError(f"{path} promises a negative number of examples in {split.name!r}")


def _document(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: it isn't JSON") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} is damaged: it isn't a JSON object")
    return found


def _read(path: Path) -> bytes:
    try:
        return read_file(path)
    except DataError as error:
        raise DataError(f"{path} can't be read: {error}") from error
