"""Faults at named points of a process, from outside: the package knows nothing of them.

A fault is written POINT:NTH:ACTION. POINT is

- "files": any change of a file or folder by Python below the work directory: create, rename,
  remove, link, make or remove a folder, as Python's audit hooks tell;
- "step": the training step with that number, whose loss and gradients become NaN (ACTION "nan");
- "module:qualified.name": a call of that function.

ACTION is "kill" (SIGKILL), "term", or the name of an errno, such as "ENOSPC", which the
point then raises, that time and always after.
"""

import dataclasses
import errno
import functools
import importlib
import os
import signal
import sys
from typing import Any

_CHANGES = ("os.mkdir", "os.rmdir", "os.rename", "os.remove", "os.link", "os.truncate")


@dataclasses.dataclass(frozen=True)
class Fault:
    """What goes wrong, where and when."""

    point: str
    nth: int
    action: str

    @classmethod
    def parse(cls, text: str) -> "Fault":
        point, nth, action = text.rsplit(":", 2)
        return cls(point, int(nth), action)

    def install(self, below: str) -> None:
        """Let it happen in this process; "files" are those below that folder."""
        calls = 0

        def reached() -> None:
            nonlocal calls
            calls += 1
            if calls == self.nth or (calls > self.nth and hasattr(errno, self.action)):
                self._act()

        if self.point == "files":
            sys.addaudithook(
                lambda event, args: reached() if _changes(event, args, below) else None
            )
        elif self.point == "step":
            _poison(self.nth)
        else:
            _wrap(self.point, reached)

    def _act(self) -> None:
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.action == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            number = getattr(errno, self.action)
            raise OSError(number, os.strerror(number))


def _changes(event: str, args: tuple[Any, ...], below: str) -> bool:
    if event == "open":
        path, _, flags = args
        writes = isinstance(flags, int) and flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)
        return bool(writes) and str(path).startswith(below)
    # shutil.rmtree names files relative to a folder that it holds open.
    return event in _CHANGES and (str(args[0]).startswith(below) or args[-1] not in (-1, None))


def _wrap(point: str, reached: Any) -> None:
    module_name, _, name = point.partition(":")
    owner: Any = importlib.import_module(module_name)
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    original = getattr(owner, last)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        reached()
        return original(*args, **kwargs)

    setattr(owner, last, wrapped)


def _poison(step: int) -> None:
    """The batch of that step has a loss and gradients that aren't numbers."""
    import jax
    import jax.numpy as jnp

    from resnet_jax.train import step as module

    original = module._gradients

    def poisoned(state: Any, *args: Any) -> Any:
        done = original(state, *args)
        nan = jnp.where(state.step == step, jnp.nan, 0.0)
        params = jax.tree.map(lambda gradient: gradient + nan, done.params)
        return done._replace(loss=done.loss + nan, params=params)

    module._gradients = poisoned
