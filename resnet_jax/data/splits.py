"""Split expressions such as "train[:90%]+test", in TFDS's syntax, and the examples they select."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from resnet_jax.errors import ConfigError, did_you_mean


class Span(NamedTuple):
    """The examples `start` ≤ i < `stop` of one split of a data set."""

    split: str
    start: int
    stop: int


def parse_split(spec: str, lengths: Mapping[str, int], name: str) -> list[Span]:
    """Return the spans that a split expression selects, in order.

    Args:
        spec: the expression.
        lengths: number of examples of each split.
        name: the data set's name, for messages.

    Raises:
        ConfigError: the expression can't be parsed, names an unknown split, selects no example,
            reaches past the end of a split or selects an example twice.
    """
    # Importing TFDS takes a second.
    from tensorflow_datasets.core import splits as tfds_splits  # noqa: PLC0415

    infos = {
        split: tfds_splits.SplitInfo(name=split, shard_lengths=[n], num_bytes=0)
        for split, n in lengths.items()
    }
    where = f"split {spec!r} of {name!r}"
    try:
        instruction = tfds_splits.AbstractSplit.from_spec(spec)
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(
            f"{where} can't be parsed; write a split's name with an optional slice, like "
            "train, train[:90%] or train[45000:], joined by +"
        ) from error
    for word in _split_names(instruction):
        if word not in lengths:
            raise ConfigError(
                f"{where}: there is no split {word!r}; the splits are "
                f"{', '.join(sorted(lengths))}.{did_you_mean(word, lengths)}"
            )
    if re.search(r"\[[^]]*shard", spec):
        raise ConfigError(
            f"{where} counts shards, of which preparations have different numbers; count examples"
            " (train[:45000]) or percent (train[:90%])"
        )
    try:
        absolute = instruction.to_absolute(infos)
    except ValueError as error:
        raise ConfigError(f"{where} can't be selected: {error}") from error
    spans = [
        Span(
            str(part.splitname),
            part.from_ or 0,
            lengths[part.splitname] if part.to is None else part.to,
        )
        for part in absolute
    ]
    for span in spans:
        if span.start >= span.stop:
            raise ConfigError(
                f"{where} selects no example; the split has {lengths[span.split]:,} examples"
            )
    for span, other in itertools.combinations(spans, 2):
        if overlap := _overlap(span, other):
            raise ConfigError(f"{where} selects {overlap} more than once; select each example once")
    return spans


def check_disjoint(
    name: str, splits: Mapping[str, str], spans: Mapping[str, Sequence[Span]]
) -> None:
    """Check that no two roles share an example.

    Args:
        name: the data set's name, for messages.
        splits: role → split expression, for messages.
        spans: role → spans of that expression.

    Raises:
        ConfigError: two roles share an example.
    """
    for role, other in itertools.combinations(spans, 2):
        for span, other_span in itertools.product(spans[role], spans[other]):
            if overlap := _overlap(span, other_span):
                raise ConfigError(
                    f"the splits {role}={splits[role]!r} and {other}={splits[other]!r} of "
                    f"{name!r} both hold {overlap}; a model must not be selected on its "
                    "training examples, nor tested on examples it was trained or selected on: "
                    "choose slices that don't overlap"
                )


def _split_names(instruction: object) -> list[str]:
    """Return the names of the splits in a parsed expression; none for `all`."""
    if hasattr(instruction, "left") and hasattr(instruction, "right"):
        return _split_names(instruction.left) + _split_names(instruction.right)
    return [str(instruction.split_name)] if hasattr(instruction, "split_name") else []


def _overlap(span: Span, other: Span) -> str:
    """Describe the examples of both spans, "examples 45000 to 49999 of train"; "" if none."""
    start, stop = max(span.start, other.start), min(span.stop, other.stop)
    if span.split != other.split or start >= stop:
        return ""
    return f"examples {start} to {stop - 1} of {span.split}"
