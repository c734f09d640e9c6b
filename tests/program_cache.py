"""JAX's cache of compiled programs that all processes of a test session share.

JAX writes a program in place, so that another process may read a part of it, say so and compile the
program itself. In processes that import this module, programs of the shared cache appear whole.
"""

import os
import threading
from pathlib import Path

from jax._src.lru_cache import LRUCache

PREFIX = "resnet_jax-tests-"
"""Of the folder's name."""

_put = LRUCache.put


def _put_whole(self: LRUCache, key: str, value: bytes) -> None:
    path = Path(self._path) / f"{key}-cache"
    if not path.parent.name.startswith(PREFIX):
        _put(self, key, value)
    elif not path.exists():
        part = path.with_name(f"{os.getpid()}.{threading.get_ident()}")
        part.write_bytes(value)
        part.replace(path)


LRUCache.put = _put_whole
