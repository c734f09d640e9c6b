"""JSON objects of files that strangers may have written."""

from collections.abc import Iterable
from typing import Any


class DuplicateKeyError(ValueError):
    """A JSON object has a key twice; `key` is the key."""

    def __init__(self, key: str) -> None:
        super().__init__(f"a JSON object has the key {key!r} twice")
        self.key = key


def unique_keys(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object: `object_pairs_hook` of `json.loads`, which keeps the last duplicate.

    Raises:
        DuplicateKeyError: a key appears twice.
    """
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise DuplicateKeyError(key)
        found[key] = value
    return found
