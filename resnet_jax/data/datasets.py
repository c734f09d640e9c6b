"""From a data set's name to uint8 arrays in host memory.

    data = load_dataset("cifar10", splits={"train": "train[:45000]", "validation": "train[45000:]"})
    data.splits["train"].images      # uint8 (45000, 32, 32, 3)

"digits" ships with scikit-learn and needs no download. "folder" is a folder of images. "mnist" and
"fashion_mnist" are read from a folder of IDX files if there is one. "arrays" are passed in Python.
Every other name is a prepared TFDS folder. TensorFlow is never imported.
"""

# ruff: noqa: PLC0415 - readers are imported where they are used: each takes up to a second

import bisect
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, get_args

import numpy as np

from resnet_jax.data.dataset_info import FROM_PYTHON, find_known
from resnet_jax.data.readers.digits import Digits
from resnet_jax.data.readers.encoded import EncodedSet
from resnet_jax.data.readers.idx import IDX_SETS, find_idx_folder, open_idx_folder
from resnet_jax.data.readers.skipped import CorruptPolicy, SkippedExample
from resnet_jax.data.readers.source import DecodedSplit, Source
from resnet_jax.data.splits import Span, check_disjoint, parse_split
from resnet_jax.errors import ConfigError, DataError

if TYPE_CHECKING:
    from resnet_jax.data.images.preprocessing import ScaleAndCrop

MEMORY_LIMIT_BYTES = 16 * 2**30
"""Largest total size of the decoded images that `load_dataset` reads into host memory."""


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Examples in host memory: `images` uint8 (n, h, w, c) and `labels` int32 (n,), read-only."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The splits of a run, by role ("train", "validation", "test").

    Attributes:
        name: the data set's name.
        splits: the splits in host memory.
        class_names: one name per class.
        fingerprint: a digest of the class names and of the decoded splits. The digest covers whole
            splits, in order: it changes with any pixel, label, name or position, but not with the
            slices of a run, nor between two preparations of the same data, whose files differ. If
            examples were skipped, the digest covers the remaining examples and the positions of
            the skipped ones. Of streamed splits it covers the files; see `Source.fingerprint`.
        skipped: damaged examples that were left out.
        streamed: the splits that stay on disk and are decoded during training.
    """

    name: str
    splits: Mapping[str, ImageSet]
    class_names: tuple[str, ...]
    fingerprint: str
    skipped: tuple[SkippedExample, ...] = ()
    streamed: Mapping[str, EncodedSet] = dataclasses.field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Number of classes; every label is in [0, num_classes)."""
        return len(self.class_names)

    @property
    def lengths(self) -> dict[str, int]:
        """Number of examples by role."""
        streamed = {role: len(examples) for role, examples in self.streamed.items()}
        return streamed | {role: len(examples) for role, examples in self.splits.items()}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of every image in `splits`."""
        height, width, channels = next(iter(self.splits.values())).images.shape[1:]
        return height, width, channels


def load_dataset(
    name: str,
    *,
    splits: Mapping[str, str],
    data_dir: str | None = None,
    crop: "ScaleAndCrop | None" = None,
    channels: int | None = None,
    corrupt: CorruptPolicy = "stop",
    streamed: Sequence[str] = (),
    source: Source | None = None,
) -> Dataset:
    """Read the splits of a data set into host memory.

    Args:
        name: the data set's name: "digits", "folder" or a TFDS name.
        splits: role ("train", "validation", …) → TFDS split expression ("train[:90%]",
            "train[45000:]", "train+validation"). No example may have two roles.
        data_dir: folder of prepared data; None is $TFDS_DATA_DIR, else ~/tensorflow_datasets. For
            "folder", the folder of images; see `resnet_jax.data.readers.folders`. For "mnist" and
            "fashion_mnist" it may be a folder of IDX files; see `resnet_jax.data.readers.idx`.
        crop: how images are scaled and cropped to one size; None if all have one size.
        channels: with `crop`, the number of channels that images are converted to; None keeps the
            number of the data set, and 3 of a folder.
        corrupt: "stop" raises an error for a damaged example. "skip" leaves out damaged examples,
            if they are few. Split expressions still count them: "train[:45000]" then selects fewer
            than 45,000 examples.
        streamed: roles whose examples are located but not decoded. Their images may have any
            sizes. Damaged examples raise an error when they are fetched.
        source: the data set, if it is open already; `data_dir`, `crop` and `channels` are then
            those with which it was opened.

    Raises:
        ConfigError: an unknown data set, split or expression, roles that share examples, or splits
            that don't fit in memory.
        DataError: missing, damaged or wrongly labelled data.
    """
    if corrupt not in get_args(CorruptPolicy):
        known = ", ".join(get_args(CorruptPolicy))
        raise ConfigError(f"data.corrupt is {corrupt!r}; it can be {known}.")
    if not splits:
        raise ConfigError(f"no split of {name!r} was requested; give at least one, e.g. train")
    source = source or open_source(name, data_dir, crop=crop, channels=channels)
    spans = {role: parse_split(spec, source.lengths, name) for role, spec in splits.items()}
    check_disjoint(name, splits, spans)

    in_memory = {role: parts for role, parts in spans.items() if role not in streamed}
    needed = sorted({span.split for parts in in_memory.values() for span in parts})
    _check_memory(name, source, needed)
    decoded = {split: source.read(split, skip_corrupt=corrupt == "skip") for split in needed}
    image_sets = {}
    for role, parts in in_memory.items():
        for span in parts:
            _check_labels(name, span, decoded[span.split], len(source.class_names))
        image_sets[role] = _select(decoded, parts)
        if not len(image_sets[role]):
            raise DataError(f"all examples of {splits[role]!r} of {name!r} are damaged")

    remedy = "repair or remove it"
    if name != FROM_PYTHON:
        remedy += ", or run `resnet-jax prepare` again with --corrupt=skip"
    encoded_sets = {}
    for role in streamed:
        records = [(span, source.records(span.split)) for span in spans[role]]
        encoded_sets[role] = EncodedSet(name, records, len(source.class_names), remedy)
    files = {
        span.split: source.fingerprint(span.split) for role in streamed for span in spans[role]
    }
    return Dataset(
        name,
        image_sets,
        source.class_names,
        _fingerprint(source.class_names, decoded, files),
        tuple(example for split in needed for example in decoded[split].skipped),
        encoded_sets,
    )


def open_source(
    name: str,
    data_dir: str | None,
    *,
    crop: "ScaleAndCrop | None" = None,
    channels: int | None = None,
) -> Source:
    """Locate a data set on disk; nothing is decoded yet. Arguments and errors as `load_dataset`."""
    if name == "digits":
        digits = Digits()
        _refuse_scaling("digits", digits.image_shape, crop)
        return digits
    if name == FROM_PYTHON:
        from resnet_jax.data.readers.from_python import not_passed

        raise not_passed()
    if name == "folder":
        from resnet_jax.data.readers.folders import open_folder

        return open_folder(data_dir, crop=crop, channels=(crop and channels) or 3)
    if name in IDX_SETS and not _is_prepared(name, data_dir):
        idx_folder = find_idx_folder(name, data_dir)
        if idx_folder:
            idx_files = open_idx_folder(name, idx_folder)
            _refuse_scaling(f"{name} in IDX files", idx_files.image_shape, crop)
            return idx_files
    known = find_known(name)
    if known and not known.one_size and not crop:
        raise ConfigError(
            f"the images of {name!r} differ in size; set data.image_size, to which they are scaled"
            " and cropped (`resnet-jax compile` and `summary` work without reading any)"
        )
    from resnet_jax.data.prepare.cifar import CIFAR, prepare_cifar
    from resnet_jax.data.readers.tfds import find_prepared, not_prepared, open_prepared
    from resnet_jax.data.readers.tfds_files import local_data_folder

    folder = local_data_folder(name, data_dir)
    prepared = find_prepared(name, folder)
    if prepared is None:
        if name not in CIFAR:
            raise not_prepared(name, folder)
        prepared = prepare_cifar(name, folder)
    return open_prepared(name, prepared, within=folder, crop=crop, channels=channels)


def _refuse_scaling(
    what: str, image_shape: tuple[int, int, int], crop: "ScaleAndCrop | None"
) -> None:
    """Raise ConfigError if a crop would change images that are read as arrays."""
    height, width, _ = image_shape
    if crop and (crop.size != (height, width) or crop.cover not in (None, (height, width))):
        raise ConfigError(
            f"images of {what} come as they are, {height}×{width} pixels of grey; they can't be"
            " scaled."
        )


def _is_prepared(name: str, data_dir: str | None) -> bool:
    """Whether the folder of prepared data has a set of this name, or is in a bucket."""
    from resnet_jax.data.readers.tfds_files import data_folder

    folder = data_folder(data_dir)
    return "://" in os.fspath(folder) or (folder / name).is_dir()


def _check_memory(name: str, source: Source, splits: Sequence[str]) -> None:
    """Raise ConfigError if the decoded splits exceed MEMORY_LIMIT_BYTES."""
    total = sum(source.lengths[split] for split in splits) * int(np.prod(source.image_shape))
    if total > MEMORY_LIMIT_BYTES:
        raise ConfigError(
            f"the splits {', '.join(splits)} of {name!r} take {total / 2**30:.1f} GiB decoded, and "
            f"at most {MEMORY_LIMIT_BYTES / 2**30:g} GiB are held in memory; choose a smaller data "
            "set or resolution"
        )


def _skipped_indices(decoded: DecodedSplit) -> list[int]:
    """Return the positions, in the prepared split, of the examples that were left out."""
    return [example.index for example in decoded.skipped]


def _rows(span: Span, decoded: DecodedSplit) -> slice:
    """Return the rows of `decoded` that hold the examples of `span`."""
    skipped = _skipped_indices(decoded)
    return slice(*(end - bisect.bisect_left(skipped, end) for end in (span.start, span.stop)))


def _check_labels(name: str, span: Span, decoded: DecodedSplit, num_classes: int) -> None:
    """Raise DataError if a label in the span isn't in [0, num_classes)."""
    rows = _rows(span, decoded)
    labels = decoded.labels[rows]
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if not len(bad):
        return
    index = rows.start + int(bad[0])
    for skipped in _skipped_indices(decoded):  # from the row to the position in the prepared split
        index += skipped <= index
    label = labels[bad[0]]
    hint = "; -1 marks an unlabelled example" if label == -1 else ""
    raise DataError(
        f"example {index} of split {span.split!r} of {name!r} has label {label}, which "
        f"is not in 0 … {num_classes - 1}{hint}; repair the data or slice such examples away "
        f"({len(bad)} in the requested part)"
    )


def _select(decoded: Mapping[str, DecodedSplit], spans: Sequence[Span]) -> ImageSet:
    """Return the examples of the spans, in order; a single span is a view, not a copy."""
    parts = [(decoded[span.split], _rows(span, decoded[span.split])) for span in spans]
    images = [split.images[rows] for split, rows in parts]
    labels = [split.labels[rows] for split, rows in parts]
    result = ImageSet(
        images[0] if len(images) == 1 else np.concatenate(images),
        labels[0] if len(labels) == 1 else np.concatenate(labels),
    )
    result.images.flags.writeable = False  # roles may share memory
    result.labels.flags.writeable = False
    return result


def _fingerprint(
    class_names: Sequence[str], decoded: Mapping[str, DecodedSplit], files: Mapping[str, str]
) -> str:
    """Compute `Dataset.fingerprint`; takes 0.2 s for CIFAR-10.

    The reasons for which examples were skipped aren't included: they are messages of libraries.

    Args:
        class_names: one name per class.
        decoded: the decoded splits.
        files: fingerprints of the files of streamed splits.
    """
    layout = {split: decoded[split].images.shape for split in sorted(decoded)}
    described: list[object] = [list(class_names), layout]
    if any(split.skipped for split in decoded.values()):
        described.append({split: _skipped_indices(decoded[split]) for split in decoded})
    digest = hashlib.blake2b(json.dumps(described).encode(), digest_size=16)
    for split in sorted(decoded):
        digest.update(np.ascontiguousarray(decoded[split].images).data)
        digest.update(decoded[split].labels.astype("<i4").tobytes())
    if not files:
        return digest.hexdigest()
    both = json.dumps([digest.hexdigest(), files], sort_keys=True).encode()
    return hashlib.blake2b(both, digest_size=16).hexdigest()
