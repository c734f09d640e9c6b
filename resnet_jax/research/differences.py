"""Differences in accuracy between groups of runs, from the rows of their seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

from resnet_jax.research.significance import Difference, compare_seeds

_SPLITS = ("test", "validation")
"""The split that is compared is the first one of these that both groups were scored on."""


def compare_rows(
    first: Sequence[Mapping[str, Any]],
    second: Sequence[Mapping[str, Any]],
    *,
    fields: Sequence[Mapping[str, Any]],
) -> dict[str, Any] | None:
    """Compare the top-1 accuracy of two groups of runs after the last step.

    Args:
        first, second: rows as from `score_rows`, one for each seed and scored split.
        fields: dotted field → value, of both groups; fields that the groups share may be missing.

    Returns:
        "split", and the fields of `Difference`; None if no split was scored in both groups.
    """
    for split in _SPLITS:
        rows = [
            [row for row in group if (row["split"], row["weights"]) == (split, "raw")]
            for group in (first, second)
        ]
        if not all(rows):
            continue
        note = _other_images(split, rows, fields)
        if note:
            found = Difference(effect=None, seeds=(len(rows[0]), len(rows[1])), note=note)
        else:
            found = compare_seeds(*({row["seed"]: row["top1"] for row in group} for group in rows))
        return {"split": split} | found.to_json()
    return None


def _other_images(
    split: str, rows: Sequence[Sequence[Mapping[str, Any]]], fields: Sequence[Mapping[str, Any]]
) -> str | None:
    """A note if the groups weren't scored on the same images."""
    names = ["data.name", f"data.{split}"]
    if any(of.get("data.name") == "folder" for of in fields):
        names.append("data.dir")
    for name in names:
        values = [of.get(name) for of in fields]
        if values[0] != values[1]:
            return f"scored on other images: {name} is {values[0]!r} and {values[1]!r}"
    counts = [{row["examples"] for row in group} for group in rows]
    if counts[0] != counts[1]:
        shown = [" or ".join(f"{n:,}" for n in sorted(of)) for of in counts]
        return f"scored on other images: {shown[0]} of them, and {shown[1]}"
    return None
