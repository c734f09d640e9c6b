"""Differences between a run and its replay: records, arrays, and what computed them."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from resnet_jax.checkpoint.integrity import read_back

_TIMINGS = ("img_per_s", "wall_s", "data_wait")


@dataclasses.dataclass(frozen=True)
class Difference:
    """A difference between a run and its replay.

    Attributes:
        step: after which it shows.
        what: the record and its field, or the array.
        detail: the values, or how many elements and arrays differ.
        largest: the largest absolute difference of numbers; None if it isn't finite, or without
            numbers.
    """

    step: int
    what: str
    detail: str
    largest: float | None = None


def first_record_difference(
    recorded: Iterable[Mapping[str, Any]], replayed: Iterable[Mapping[str, Any]]
) -> Difference | None:
    """Compare records of metrics.jsonl, except for times and speeds.

    Fields that only the replay has don't count: the run may be of an older version.
    """
    there, here = _by_place(recorded), _by_place(replayed)
    for place in sorted(there | here, key=lambda place: place[0]):
        step, split, weights = place
        name = f"{split} ({weights})" if weights else split
        if place not in there:
            return Difference(step, name, "isn't in metrics.jsonl")
        if place not in here:
            return Difference(step, name, "isn't in the replay")
        for field, value in there[place].items():
            again = here[place].get(field)
            if field not in _TIMINGS and value != again:
                numbers = all(isinstance(number, int | float) for number in (value, again))
                return Difference(
                    step,
                    f"{name} {field}",
                    f"{value} on record, {again} replayed",
                    abs(value - again) if numbers else None,
                )
    return None


def _by_place(
    records: Iterable[Mapping[str, Any]],
) -> dict[tuple[int, str, str], Mapping[str, Any]]:
    return {(r["step"], r["split"], r.get("weights", "")): r for r in records}


def first_array_difference(
    step: int, names: Iterable[str], saved: epath.Path, replayed: epath.Path
) -> Difference | None:
    """Compare the bits of two saved states, array by array.

    Args:
        step: of the checkpoints.
        names: of the arrays.
        saved, replayed: folders of the states.

    Raises:
        DataError: an array can't be read.
    """
    first, count, largest = "", 0, 0.0
    for name in names:
        there, here = (read_back(folder, [name])[name] for folder in (saved, replayed))
        if _bits(there) == _bits(here):
            continue
        first, count = first or name, count + 1
        largest = max(largest, _largest(there, here))
    if not count:
        return None
    more = f" and more, {count} arrays in all" if count > 1 else ""
    detail = f"differs{more}, by at most {largest:.3g}"
    return Difference(step, first, detail, largest if math.isfinite(largest) else None)


def _bits(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return str(array.dtype), array.shape, array.tobytes()


def _largest(there: np.ndarray, here: np.ndarray) -> float:
    """Largest absolute difference; infinity with other shapes, or if only one is finite."""
    if there.shape != here.shape:
        return math.inf
    there, here = (array.astype(np.float64) for array in (there, here))
    same = (there == here) | (np.isnan(there) & np.isnan(here))
    apart = np.abs(np.subtract(there, here, where=~same, out=np.zeros_like(there)))
    return float(np.nan_to_num(apart, nan=np.inf).max())


def describe_other(
    recorded: Mapping[str, Any] | None, here: Mapping[str, Any], *, fixed_shards: bool
) -> str:
    """Say what else computes the replay than the run: hardware, versions, code, XLA's settings.

    Args:
        recorded: an environment of the run; None if the run's version recorded none.
        here: `environment` of this process.
        fixed_shards: the bits don't depend on the number of devices and processes.

    Returns:
        What differs, or what isn't on record; "" if nothing.
    """
    if recorded is None:
        return "the run doesn't record what computed it"
    changed = [
        f"{name} {recorded[section].get(name)}, here {value}"
        for section in ("hardware", "versions")
        for name, value in here[section].items()
        if recorded[section].get(name) != value
        and not (fixed_shards and name in ("devices", "processes"))
    ]
    changed += [
        f"{name} {recorded.get(name, 'not on record') or 'none'}, here {here[name] or 'none'}"
        for name in ("convolutions", "code", "xla_flags", "xla_threads", "cores")
        if recorded.get(name) != here[name]
    ]
    if "options" not in recorded:
        changed.append("JAX's options not on record")
    else:
        there, own = recorded["options"], here["options"]
        changed += [
            f"{name} {there.get(name, 'not set')}, here {own.get(name, 'not set')}"
            for name in sorted(there | own)
            if there.get(name) != own.get(name)
        ]
    return "; ".join(changed)
