"""Changes to bytes, texts and JSON documents, each a function of a random number generator."""

import contextlib
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from resnet_jax.errors import ResnetJaxError

NUMBERS = (
    0,
    -1,
    1,
    2,
    255,
    2**15,
    2**31 - 1,
    2**31,
    2**32,
    2**63,
    2**64,
    10**30,
    -(2**63),
    10**400,
)
FLOATS = (0.0, -0.0, 0.5, 1e-320, 1e308, float("inf"), -float("inf"), float("nan"))
WORDS = (
    "",
    "train",
    "no",
    "é\u2028",
    "\ud800",
    "\0",
    "a" * 5000,
    "../../x",
    "{}",
    "1e999",
    "%s",
    "-1",
)


def value(rng: random.Random, depth: int = 0) -> Any:
    """Anything that JSON can hold, and what Python's parser takes beside it."""
    kinds: list[Callable[[], Any]] = [
        lambda: rng.choice(NUMBERS),
        lambda: rng.choice(FLOATS),
        lambda: rng.choice(WORDS),
        lambda: rng.choice((None, True, False)),
        lambda: rng.randint(-10, 10**6),
    ]
    if depth < 3:
        kinds += [
            lambda: [value(rng, depth + 1) for _ in range(rng.randint(0, 3))],
            lambda: {rng.choice(WORDS): value(rng, depth + 1) for _ in range(rng.randint(0, 3))},
        ]
    return rng.choice(kinds)()


def document(content: Any, rng: random.Random) -> Any:
    """The same JSON document with one to three places changed."""
    content = json.loads(json.dumps(content))
    for _ in range(rng.randint(1, 3)):
        places = list(_places(content))
        if not places:
            return value(rng)
        parent, key = rng.choice(places)
        change = rng.randrange(5)
        if change == 0:
            del parent[key]
        elif change == 1 and isinstance(parent, dict):
            parent[rng.choice([*WORDS, *parent])] = parent.pop(key)
        elif change == 2:
            parent[key] = [parent[key]]
        elif change == 3:
            other, name = rng.choice(places)
            parent[key] = json.loads(json.dumps(other[name]))
        else:
            parent[key] = value(rng)
    return content


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(content) if isinstance(content, dict) else range(len(content))
    for key in keys:
        yield content, key
        if isinstance(content[key], dict | list):
            yield from _places(content[key])


def raw(data: bytes, rng: random.Random) -> bytes:
    """The same bytes with one to three places changed."""
    for _ in range(rng.randint(1, 3)):
        data = rng.choice((_flip, _cut, _insert, _move, _number, _digits))(data, rng)
    return data


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8) if changed else 0):
        at = rng.randrange(min(rng.choice((len(changed), 64)), len(changed)))
        changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(data: bytes, rng: random.Random) -> bytes:
    start = rng.randint(0, len(data))
    return rng.choice((data[:start], data[start:], data[:-1], data[:start] + data[start + 1 :]))


def _insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randint(0, len(data))
    piece = rng.choice((rng.randbytes(rng.randint(1, 40)), b"[" * 50_000, b"\0", b"\xff\xff", b'"'))
    return data[:at] + piece + data[at:]


def _move(data: bytes, rng: random.Random) -> bytes:
    start, at = rng.randint(0, len(data)), rng.randint(0, len(data))
    piece = data[start : start + rng.randint(1, 100)]
    return data[:at] + piece + data[at + len(piece) * rng.randint(0, 1) :]


def _number(data: bytes, rng: random.Random) -> bytes:
    """An extreme number of 1, 2, 4 or 8 bytes."""
    size = rng.choice((1, 2, 4, 8))
    number = rng.choice(NUMBERS[:13]) % 2 ** (8 * size)
    at = rng.randint(0, len(data))
    order = rng.choice(("little", "big"))
    return data[:at] + number.to_bytes(size, order) + data[at + size :]


def _digits(data: bytes, rng: random.Random) -> bytes:
    """Another number where digits stand."""
    found = [match.span() for match in re.finditer(rb"\d+", data)]
    if not found:
        return data
    start, end = rng.choice(found)
    other = rng.choice((str(rng.choice(NUMBERS)).encode(), b"9" * 5000, b"1e999", b"NaN", b"-0"))
    return data[:start] + other + data[end:]


class Record:
    """What came out of all cases: refused, accepted, and what must not be."""

    def __init__(self) -> None:
        self.refused = self.accepted = 0
        self.slowest_s = 0.0  # of a processor, which others may keep busy
        self.reasons: set[str] = set()
        self.wrong: list[str] = []

    @contextlib.contextmanager
    def case(self, number: object) -> Iterator[None]:
        """One case; nothing but the package's own errors, each of one line, may come out."""
        start = time.process_time()
        try:
            yield
            self.accepted += 1
        except ResnetJaxError as error:
            self.refused += 1
            self.reasons.add(re.sub(r"'[^']*'|\(.*\)|\d[\d,.]*|/\S+", "…", str(error))[:200])
            # A list of differences between configs has a line for each.
            if not str(error) or ("\n" in str(error) and "(old → new)" not in str(error)):
                self.wrong.append(f"case {number}: {str(error)!r:.300}")
        except Exception as error:
            self.wrong.append(f"case {number}: {type(error).__name__}: {str(error)[:300]}")
        self.slowest_s = max(self.slowest_s, time.process_time() - start)

    def summary(self) -> dict[str, object]:
        """As a JSON document."""
        return {
            "accepted": self.accepted,
            "refused": self.refused,
            "kinds_of_refusal": len(self.reasons),
            "slowest_s": self.slowest_s,
            "wrong": self.wrong[:20],
            "wrong_count": len(self.wrong),
        }
