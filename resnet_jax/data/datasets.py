"""From a data set's name to uint8 arrays in host memory.

    data = load_dataset("cifar10", splits={"train": "train[:45000]", "validation": "train[45000:]"})
    data.splits["train"].images      # uint8 (45000, 32, 32, 3)

`digits` ships with scikit-learn and needs no download; "folder" is a folder of one's own images;
every other name is a prepared TFDS folder. TensorFlow is never imported, and the heavy imports
happen inside the functions that need them.
"""

# ruff: noqa: PLC0415 - importing this module must stay quick

import bisect
import dataclasses
import functools
import hashlib
import importlib.util
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol, get_args

import numpy as np

from resnet_jax.data.dataset_info import find_known
from resnet_jax.data.readers.encoded import EncodedSet, Records, Span
from resnet_jax.data.readers.skipped import CorruptPolicy, SkippedExample
from resnet_jax.errors import ConfigError, DataError, did_you_mean

if TYPE_CHECKING:
    from resnet_jax.data.images.preprocessing import ScaleAndCrop

MEMORY_LIMIT_BYTES = 16 * 2**30
"""Largest total of decoded images that `load_dataset` takes into host memory."""

DIGITS_TEST_EXAMPLES = 360
# Of all digits, those for training first: as scikit-learn's `train_test_split` stratifies and
# shuffles them with `random_state=2015`.
_DIGITS_ORDER = Path(__file__).with_name("digits_order.npy")


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """One split in host memory: `images` uint8 (n, h, w, c) and `labels` int32 (n,), read-only."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The splits that were asked for, by role, and what they have in common.

    `streamed` are those that stay on disk and are decoded each time. `fingerprint` is a digest of
    the decoded splits that were read, whole and in order, and of the
    class names. It changes with any pixel, label, name or position, but not with the slices taken
    nor from one preparation of the same data to the next (whose files do differ). Where examples
    were skipped, it covers what is left and the places of what isn't. Of streamed splits it covers
    the files (`Source.fingerprint`).
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
        """Examples by role."""
        held = {role: len(one) for role, one in self.splits.items()}
        return {role: len(one) for role, one in self.streamed.items()} | held

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of every image in `splits`."""
        height, width, channels = next(iter(self.splits.values())).images.shape[1:]
        return height, width, channels


class Source(Protocol):
    """A data set whose splits are known but not yet in memory."""

    @property
    def lengths(self) -> Mapping[str, int]:
        """Number of examples of each split."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c), the same for all images."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class."""

    def read(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """All images, uint8 (n, h, w, c), and labels, int32 (n,), of one split."""

    def read_intact(self, split: str) -> tuple[np.ndarray, np.ndarray, tuple[SkippedExample, ...]]:
        """The same without damaged examples, and what these are, in order."""

    def records(self, split: str) -> Records:
        """The examples of a split as they lie on disk."""

    def fingerprint(self, split: str) -> str:
        """A text that changes with the files of a split."""


def load_dataset(
    name: str,
    *,
    splits: Mapping[str, str],
    data_dir: str | None = None,
    crop: "ScaleAndCrop | None" = None,
    channels: int | None = None,
    corrupt: CorruptPolicy = "stop",
    streamed: Sequence[str] = (),
) -> Dataset:
    """Read the splits of the data set `name` into host memory.

    `splits` maps a role ("train", "validation", …) to a TFDS split expression ("train[:90%]",
    "train[45000:]", "train+validation"). Prepared data are looked for in `data_dir`, else in
    $TFDS_DATA_DIR, else in ~/tensorflow_datasets; `digits` needs none, and "folder" is the images
    in `data_dir` (see `resnet_jax.data.readers.folders`).

    With `crop` every image is scaled and cropped, and converted to `channels`; None keeps those of
    the data set. Without `crop` all images must have one size.

    No example may be in two roles, so that no model is selected on what it was trained on, or
    tested on what it was trained or selected on.

    With `corrupt="skip"` damaged examples are left out, if they are few. Expressions count them all
    the same: "train[:45000]" then has fewer than 45,000 examples, and no example of another role.

    Roles that are `streamed` are found but not read: their images may have any sizes, and damaged
    ones raise an error when they are fetched.

    Raises ConfigError for an unknown data set, split or expression, for overlapping roles and for
    sets that don't fit in memory; DataError for data that are missing, damaged or wrongly labelled.
    """
    if corrupt not in get_args(CorruptPolicy):
        known = ", ".join(get_args(CorruptPolicy))
        raise ConfigError(f"data.corrupt is {corrupt!r}; it can be {known}.")
    if not splits:
        raise ConfigError(f"no split of {name!r} was asked for; give at least one, e.g. train")
    source = open_source(name, data_dir, crop=crop, channels=channels)
    spans = {role: parse_split(spec, source.lengths, name) for role, spec in splits.items()}
    _refuse_overlap(name, splits, spans)
    read = {role: parts for role, parts in spans.items() if role not in streamed}
    needed = sorted({span.split for parts in read.values() for span in parts})
    _refuse_too_large(name, source, needed)
    whole: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    skipped: tuple[SkippedExample, ...] = ()
    for split in needed:
        if corrupt == "skip":
            images, labels, left_out = source.read_intact(split)
            whole[split], skipped = (images, labels), skipped + left_out
        else:
            whole[split] = source.read(split)
    gone = {split: [one.index for one in skipped if one.split == split] for split in needed}
    sets = {}
    for role, parts in read.items():
        left = [_without(span, gone[span.split]) for span in parts]
        for span in left:
            _check_labels(name, span, whole[span.split][1], len(source.class_names), gone)
        sets[role] = _take(whole, left)
        if not len(sets[role]):
            raise DataError(f"all examples of {splits[role]!r} of {name!r} are damaged")
    fingerprint = _fingerprint(source.class_names, whole, gone if skipped else {})
    encoded = {role: _encoded(name, source, spans[role]) for role in streamed}
    if encoded:
        files = {span.split: source.fingerprint(span.split) for s in streamed for span in spans[s]}
        both = json.dumps([fingerprint, files], sort_keys=True).encode()
        fingerprint = hashlib.blake2b(both, digest_size=16).hexdigest()
    return Dataset(name, sets, source.class_names, fingerprint, skipped, encoded)


def _encoded(name: str, source: Source, spans: Sequence[Span]) -> EncodedSet:
    parts = [(span, source.records(span.split)) for span in spans]
    remedy = "repair or remove it, or `resnet-jax prepare` the data anew without what is damaged"
    return EncodedSet(name, parts, len(source.class_names), remedy)


def parse_split(spec: str, lengths: Mapping[str, int], name: str) -> list[Span]:
    """The spans that a TFDS split expression such as "train[:90%]+test" selects.

    `lengths` holds the number of examples of each split of the data set `name`. Raises
    ConfigError for anything that isn't a split expression, names an unknown split, selects
    nothing, reaches past the end or selects an example twice.
    """
    from tensorflow_datasets.core import splits as tfds_splits

    infos = {
        split: tfds_splits.SplitInfo(name=split, shard_lengths=[n], num_bytes=0)
        for split, n in lengths.items()
    }
    where = f"split {spec!r} of {name!r}"
    try:
        instruction = tfds_splits.AbstractSplit.from_spec(spec)
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(
            f"{where} can't be understood; write a split's name with an optional slice, like "
            "train, train[:90%] or train[45000:], joined by +"
        ) from error
    for word in _split_names(instruction):
        if word not in lengths:
            raise ConfigError(
                f"{where}: there is no split {word!r}; the splits are "
                f"{', '.join(sorted(lengths))}.{did_you_mean(word, lengths)}"
            )
    try:
        absolute = instruction.to_absolute(infos)
    except ValueError as error:
        raise ConfigError(f"{where} can't be taken: {error}") from error
    spans = [
        Span(
            str(one.splitname), one.from_ or 0, lengths[one.splitname] if one.to is None else one.to
        )
        for one in absolute
    ]
    for number, span in enumerate(spans):
        if span.start >= span.stop:
            raise ConfigError(f"{where} selects no example; the split has {lengths[span.split]}")
        for other in spans[:number]:
            if shared := _shared(span, other):
                raise ConfigError(f"{where} takes {shared} more than once; name each example once")
    return spans


def _split_names(instruction: object) -> list[str]:
    """The names of the splits in a parsed expression; none for `all`."""
    if hasattr(instruction, "left") and hasattr(instruction, "right"):
        return _split_names(instruction.left) + _split_names(instruction.right)
    return [str(instruction.split_name)] if hasattr(instruction, "split_name") else []


def _shared(one: Span, other: Span) -> str:
    """`examples 45000 to 49999 of train` if the spans have examples in common, else ""."""
    start, stop = max(one.start, other.start), min(one.stop, other.stop)
    if one.split != other.split or start >= stop:
        return ""
    return f"examples {start} to {stop - 1} of {one.split}"


def _refuse_overlap(
    name: str, splits: Mapping[str, str], spans: Mapping[str, Sequence[Span]]
) -> None:
    """Raise ConfigError if two roles have an example in common."""
    for role, other in itertools.combinations(spans, 2):
        for shared in (_shared(a, b) for a in spans[role] for b in spans[other]):
            if shared:
                raise ConfigError(
                    f"the splits {role}={splits[role]!r} and {other}={splits[other]!r} of "
                    f"{name!r} both hold {shared}; a model must not be selected on what it was "
                    "trained on, nor tested on what it was trained or selected on: slice them apart"
                )


def _refuse_too_large(name: str, source: Source, needed: Sequence[str]) -> None:
    """Raise ConfigError if the decoded splits exceed MEMORY_LIMIT_BYTES."""
    total = sum(source.lengths[split] for split in needed) * int(np.prod(source.image_shape))
    if total > MEMORY_LIMIT_BYTES:
        raise ConfigError(
            f"the splits {', '.join(needed)} of {name!r} take {total / 2**30:.1f} GiB decoded, and "
            f"at most {MEMORY_LIMIT_BYTES / 2**30:g} GiB are held in memory; choose a smaller data "
            "set or resolution"
        )


def _without(span: Span, gone: Sequence[int]) -> Span:
    """The same span among the examples that are left, if those at `gone`, in order, are skipped."""
    start, stop = (end - bisect.bisect_left(gone, end) for end in (span.start, span.stop))
    return Span(span.split, start, stop)


def _check_labels(
    name: str,
    span: Span,
    labels: np.ndarray,
    num_classes: int,
    gone: Mapping[str, Sequence[int]],
) -> None:
    """Raise DataError if a label in the span isn't in [0, num_classes)."""
    part = labels[span.start : span.stop]
    bad = np.flatnonzero((part < 0) | (part >= num_classes))
    if len(bad):
        index = span.start + int(bad[0])
        label = labels[index]
        for skipped in gone[span.split]:  # as prepared, it has a later place
            index += skipped <= index
        hint = "; -1 marks an unlabelled example" if label == -1 else ""
        raise DataError(
            f"example {index} of split {span.split!r} of {name!r} has label {label}, which "
            f"is not in 0 … {num_classes - 1}{hint}; repair the data or slice such examples away "
            f"({len(bad)} in the part asked for)"
        )


def _fingerprint(
    class_names: Sequence[str],
    whole: Mapping[str, tuple[np.ndarray, np.ndarray]],
    gone: Mapping[str, Sequence[int]],
) -> str:
    """Digest of class names and whole splits (0.2 s for CIFAR-10); `gone` is empty for intact data.

    Reasons are no part of it: they are another library's words.
    """
    layout = {split: images.shape for split, (images, _) in sorted(whole.items())}
    described = [list(class_names), layout, *([gone] if gone else [])]
    digest = hashlib.blake2b(json.dumps(described).encode(), digest_size=16)
    for split in sorted(whole):
        images, labels = whole[split]
        digest.update(np.ascontiguousarray(images).data)
        digest.update(labels.astype("<i4").tobytes())
    return digest.hexdigest()


def _take(whole: Mapping[str, tuple[np.ndarray, np.ndarray]], spans: Sequence[Span]) -> ImageSet:
    """The examples of the spans, in order; a single span is a view, not a copy."""
    images = [whole[span.split][0][span.start : span.stop] for span in spans]
    labels = [whole[span.split][1][span.start : span.stop] for span in spans]
    result = ImageSet(
        images[0] if len(images) == 1 else np.concatenate(images),
        labels[0] if len(labels) == 1 else np.concatenate(labels),
    )
    result.images.flags.writeable = False  # roles share memory: no one may change it
    result.labels.flags.writeable = False
    return result


def open_source(
    name: str,
    data_dir: str | None,
    *,
    crop: "ScaleAndCrop | None" = None,
    channels: int | None = None,
) -> Source:
    """Find the data set; nothing is decoded yet.

    The arguments are those of `load_dataset`, and what is raised.
    """
    if name == "digits":
        if crop:
            raise ConfigError("digits come as they are, 8×8 pixels of grey; they can't be scaled.")
        return Digits()
    if name == "folder":
        from resnet_jax.data.readers.folders import open_folder

        return open_folder(data_dir, crop=crop)
    known = find_known(name)
    if known and not known.one_size and not crop:
        raise ConfigError(
            f"the images of {name!r} differ in size; set data.image_size, to which they are scaled"
            " and cropped (`resnet-jax compile` and `summary` work without reading any)"
        )
    from resnet_jax.data.readers.tfds import open_prepared

    return open_prepared(name, data_dir, crop=crop, channels=channels)


class Digits:
    """scikit-learn's 1,797 handwritten digits, 8×8 grey, in a fixed stratified split."""

    image_shape = (8, 8, 1)
    class_names = tuple("0123456789")

    @functools.cached_property
    def _splits(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        # Not by `sklearn.datasets`, whose import takes a second.
        package = importlib.util.find_spec("sklearn")
        if package is None or not package.submodule_search_locations:
            raise DataError("digits come with scikit-learn; pip install scikit-learn")
        file = Path(package.submodule_search_locations[0]) / "datasets/data/digits.csv.gz"
        rows = np.loadtxt(file, delimiter=",", dtype=np.float64)
        images = np.round(rows[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        labels = rows[:, -1].astype(np.int32)
        train, test = np.split(np.load(_DIGITS_ORDER), [-DIGITS_TEST_EXAMPLES])
        return {"train": (images[train], labels[train]), "test": (images[test], labels[test])}

    @property
    def lengths(self) -> dict[str, int]:
        """1,437 for training, 360 for test."""
        return {split: len(labels) for split, (_, labels) in self._splits.items()}

    def read(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 (n, 8, 8, 1), 0…255, and labels int32 (n,)."""
        return self._splits[split]

    def read_intact(self, split: str) -> tuple[np.ndarray, np.ndarray, tuple[SkippedExample, ...]]:
        """The same: they come with a package, whose installer has checked them."""
        return *self._splits[split], ()

    def records(self, split: str) -> NoReturn:
        """They aren't encoded."""
        raise ConfigError("digits are arrays in memory; data.random_crop_area isn't for them.")

    def fingerprint(self, split: str) -> NoReturn:
        """As `records`."""
        self.records(split)
