"""Locks of other holders."""

import dataclasses
import json
from pathlib import Path

from resnet_jax.checkpoint.lock_holder import this_process

DEAD = {"pid": 2**22 + 1}  # no process has such a number
ANOTHER = {"token": "another"}
ELSEWHERE = {"host": "elsewhere", "here": "another host", **ANOTHER}


def write_lock(path: Path, change: dict[str, object]) -> None:
    """Write this process's lock, changed."""
    path.write_text(json.dumps(dataclasses.asdict(this_process()) | change))


def token_of(path: Path) -> str:
    """The token in a lock."""
    return json.loads(path.read_text())["token"]
