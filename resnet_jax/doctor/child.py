"""A program that may hang, and must not take its caller along."""

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Done(NamedTuple):
    """How a program ended; a negative `code` is the signal that killed it."""

    code: int
    output: str
    errors: str


class Child:
    """A program whose caller waits for it, but not for ever; killed at the end of `with`.

    `subprocess.run` would do but for one case: after its time-out it waits until the killed
    program is gone, and one that hangs in a driver can't be killed.
    """

    def __init__(
        self, command: Sequence[str], *, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start `command`, with `environment` beside this process's; OSError if that can't be."""
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
            encoding="utf-8",
            errors="replace",
        )

    def wait(self, timeout_s: float) -> Done | None:
        """Wait for the program's end; None if it still runs after so many seconds."""
        try:
            output, errors = self._process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return None
        return Done(self._process.returncode, output, errors)

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.communicate(timeout=1.0)
