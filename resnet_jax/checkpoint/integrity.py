"""Checksums of arrays and seals, to tell a checkpoint that was damaged from one that wasn't.

Orbax and TensorStore keep no checksums of array data: a flipped bit is restored as another number.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from resnet_jax.checkpoint.corruption import FlawError
from resnet_jax.errors import DataError

_LANES = ((0x9E3779B1, 0x00000000), (0x85EBCA77, 0x27D4EB2F))


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by path, such as "params.conv1.kernel", which is Orbax's name too."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def checksums(arrays: Mapping[str, Any]) -> dict[str, str]:
    """A checksum of 64 bits for each array, in hexadecimal.

    It is a sum over the elements of a hash of each one's bits and place: any single change is
    seen for certain, others but for one in 2^64. As a sum it doesn't depend on how the array lies
    on devices. Shape and type of each array are a part of it. NaNs count by their bits.

    Args:
        arrays: NumPy's or JAX's, by name; of the latter no device holds more than its own part.
    """
    here = {name: array for name, array in arrays.items() if not isinstance(array, jax.Array)}
    placed = {name: array for name, array in arrays.items() if name not in here}
    split = {name: a for name, a in placed.items() if not a.is_fully_replicated}
    sums = {name: _sums(array, np) for name, array in here.items()}
    sums |= {name: _sums_on_devices(placed[name]) for name in placed if name not in split}
    # Sums over shards are exchanged: many programs of such at a time may wait for one another.
    sums |= _all_sums_on_devices(split)
    return {
        name: f"{arrays[name].dtype}{list(arrays[name].shape)}:{int(high):08x}{int(low):08x}"
        for name, (high, low) in jax.device_get(sums).items()
    }


def different(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """Names of the arrays whose checksums differ, or that only one of the two has."""
    names = sorted(set(found) | set(expected))
    return [name for name in names if found.get(name) != expected.get(name)]


def _sums(array: Any, xp: Any) -> Any:
    words = xp.atleast_1d(_words(array, xp))
    place = xp.arange(words.size, dtype=xp.uint32).reshape(words.shape)
    lanes = []
    for factor, offset in _LANES:
        # The finaliser of MurmurHash3, a one-to-one mapping in which every bit matters.
        h = words ^ (place * xp.uint32(factor) + xp.uint32(offset))
        h = (h ^ (h >> xp.uint32(16))) * xp.uint32(0x85EBCA6B)
        h = (h ^ (h >> xp.uint32(13))) * xp.uint32(0xC2B2AE35)
        lanes.append((h ^ (h >> xp.uint32(16))).sum(dtype=xp.uint32))
    return xp.stack(lanes)


@jax.jit
def _sums_on_devices(array: jax.Array) -> jax.Array:
    return _sums(array, jnp)


@jax.jit
def _all_sums_on_devices(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: _sums(array, jnp) for name, array in arrays.items()}


def _words(array: Any, xp: Any) -> Any:
    """The bits of each element as uint32; two words for elements of eight bytes."""
    size = array.dtype.itemsize
    bits = xp.dtype(f"uint{8 * min(size, 4)}")
    if array.dtype == bool:
        return array.astype(xp.uint32)
    if xp is np:
        shape = (*array.shape, 2) if size == 8 else array.shape
        return np.ascontiguousarray(array).view(bits).reshape(shape).astype(np.uint32)
    return jax.lax.bitcast_convert_type(array, bits).astype(jnp.uint32)


def read_back(folder: epath.Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Read arrays of a saved state by TensorStore alone, without Orbax.

    Args:
        folder: that of the state, inside the checkpoint's.
        names: of the arrays.

    Raises:
        DataError: one can't be read.
    """
    import tensorstore  # noqa: PLC0415 - Orbax brings it

    base = _kvstore(f"{os.fspath(folder)}/")
    try:
        pending = {
            name: tensorstore.open(
                {
                    "driver": "zarr",
                    "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"},
                    "open": True,
                }
            )
            for name in names
        }
        return {name: future.result().read().result() for name, future in pending.items()}
    except Exception as error:  # of many kinds
        raise DataError(f"an array can't be read ({str(error).splitlines()[0][:160]})") from error


def _kvstore(path: str) -> dict[str, str]:
    """Where a path is, for TensorStore; not as a URL, in which "%" and "#" have a meaning."""
    scheme, separator, rest = path.partition("://")
    if not separator:
        return {"driver": "file", "path": path}
    bucket, _, inside = rest.partition("/")
    return {"driver": {"gs": "gcs"}.get(scheme, scheme), "bucket": bucket, "path": inside}


def own_step(state: Any) -> int | None:
    """The number of steps that a state says it is after; None if it doesn't.

    Versions that wrote no number beside the state wrote one in it.
    """
    leaf = named_leaves(state).get("step")
    if leaf is None:
        return None
    return int(np.max(leaf.addressable_data(0)))  # of several seeds it is the same


def check_step(step: int, saved: int | None) -> None:
    """Refuse a checkpoint that was copied or renamed to another step's name.

    Raises:
        FlawError: it was.
    """
    if saved not in (step, None):
        raise FlawError(f"it is a copy of that of step {saved}")


def sealed(document: dict[str, Any]) -> dict[str, Any]:
    """The document with a digest of itself."""
    return document | {"seal": _seal(document)}


def unsealed(document: dict[str, Any]) -> dict[str, Any]:
    """The document without its seal.

    Raises:
        FlawError: it isn't what was sealed.
    """
    inner = {name: value for name, value in document.items() if name != "seal"}
    if document.get("seal") != _seal(inner):
        raise FlawError("its progress fails its checksum")
    return inner


def _seal(document: dict[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
