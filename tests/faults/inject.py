"""Faults at named points of a process, from outside: the package knows nothing of them.

A fault is written POINT:NTH:ACTION. POINT is

- "files": any change of a file or folder by Python below the work directory: create, rename,
  remove, link, make or remove a folder, as Python's audit hooks tell;
- "step": the training step with that number, whose loss and gradients become NaN (ACTION "nan");
- "module:qualified.name": a call of that function.

ACTION is

- "kill" (SIGKILL) or "term" (SIGTERM): a signal to the process itself;
- "back" or "ahead": its clock jumps by a day back, or by ten years ahead, and goes on from there;
- "starve": from now on it gets hardly more memory than it has;
- "slow", "hang" or the name of an errno, such as "ENOSPC": the point takes a while, never returns
  or raises that error, this time and always after.
"""

import dataclasses
import errno
import functools
import importlib
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

_CHANGES = ("os.mkdir", "os.rmdir", "os.rename", "os.remove", "os.link", "os.truncate")
_JUMPS_S = {"back": -86_400.0, "ahead": 10 * 365 * 86_400.0}
_SLOW_S = 0.02
_MORE_BYTES = 64 * 2**20  # for a starving process: enough for an error message


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
            lasts = self.action in ("slow", "hang") or hasattr(errno, self.action)
            if calls == self.nth or (calls > self.nth and lasts):
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
        elif self.action in _JUMPS_S:
            _set_clock(_JUMPS_S[self.action])
        elif self.action == "starve":
            _starve()
        elif self.action == "slow":
            time.sleep(_SLOW_S)
        elif self.action == "hang":
            threading.Event().wait()
        else:
            number = getattr(errno, self.action)
            raise OSError(number, os.strerror(number))


def _set_clock(jump_s: float) -> None:
    """Let Python's clock differ from now on; only an administrator may set the host's."""
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() + jump_s
    time.time_ns = lambda: now_ns() + int(jump_s * 1e9)


def _starve() -> None:
    """Limit the memory to what the process has between two steps, and a little more."""
    import jax

    from resnet_jax.utils.malloc import release_freed_memory

    for array in jax.live_arrays():
        array.block_until_ready()
    release_freed_memory()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + _MORE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


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

    original = module.forward_backward

    def poisoned(state: Any, *args: Any) -> Any:
        done = original(state, *args)
        nan = jnp.where(state.step == step, jnp.nan, 0.0)
        params = jax.tree.map(lambda gradient: gradient + nan, done.params)
        return done._replace(loss=done.loss + nan, params=params)

    module.forward_backward = poisoned
