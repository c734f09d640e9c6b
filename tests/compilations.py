"""Counts the programs that XLA compiles."""

import contextlib
from collections.abc import Iterator

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def compilations() -> Iterator[list[float]]:
    """How long each program took that was compiled, or found in a cache on disk, meanwhile."""
    seconds: list[float] = []

    def note(event: str, duration: float, **_: object) -> None:
        if event == _EVENT:
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
