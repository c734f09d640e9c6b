"""Checksums of arrays and documents, to detect corrupt checkpoints.

Orbax and TensorStore store no checksums of array data: with a flipped bit they restore another
number.
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

from resnet_jax.checkpoint.corruption import CorruptionError, ForeignCheckpointError
from resnet_jax.errors import DataError

_LANES = ((0x9E3779B1, 0x00000000), (0x85EBCA77, 0x27D4EB2F))


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves of a tree by path, such as "params.conv1.kernel"; Orbax uses the same names."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def checksums(arrays: Mapping[str, Any]) -> dict[str, str]:
    """A checksum of 64 bits for each array, in hexadecimal, with its type and shape.

    The checksum is the sum over the elements of a hash of each element's bits and index. It detects
    every change of a single element, and other changes with probability 1 - 2^-64. As a sum, it
    doesn't depend on the sharding. NaNs are compared by their bits.

    Args:
        arrays: NumPy or JAX arrays, by name. Sharded arrays aren't gathered.
    """
    on_host = {name: array for name, array in arrays.items() if not isinstance(array, jax.Array)}
    on_devices = {name: array for name, array in arrays.items() if name not in on_host}
    sharded = {name: a for name, a in on_devices.items() if not a.is_fully_replicated}
    sums = {name: _sums(array, np) for name, array in on_host.items()}
    sums |= {name: _sums_on_devices(a) for name, a in on_devices.items() if name not in sharded}
    # In one program, because several programs with collectives could deadlock.
    sums |= _all_sums_on_devices(sharded)
    return {
        name: f"{arrays[name].dtype}{list(arrays[name].shape)}:{int(high):08x}{int(low):08x}"
        for name, (high, low) in jax.device_get(sums).items()
    }


def different(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """Names of the arrays whose checksums differ, or that are in only one of the two."""
    names = sorted(set(found) | set(expected))
    return [name for name in names if found.get(name) != expected.get(name)]


def _sums(array: Any, xp: Any) -> Any:
    words = xp.atleast_1d(_words(array, xp))
    index = xp.arange(words.size, dtype=xp.uint32).reshape(words.shape)
    lanes = []
    for factor, offset in _LANES:
        # The finaliser of MurmurHash3, a bijection.
        h = words ^ (index * xp.uint32(factor) + xp.uint32(offset))
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
    """The bits of each element as uint32; an element of eight bytes has two words."""
    size = array.dtype.itemsize
    bits = xp.dtype(f"uint{8 * min(size, 4)}")
    if array.dtype == bool:
        return array.astype(xp.uint32)
    if xp is np:
        shape = (*array.shape, 2) if size == 8 else array.shape
        return np.ascontiguousarray(array).view(bits).reshape(shape).astype(np.uint32)
    return jax.lax.bitcast_convert_type(array, bits).astype(jnp.uint32)


def read_back(folder: epath.Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Read arrays of a saved state by TensorStore, without Orbax.

    Args:
        folder: of the state, inside the folder of the checkpoint.
        names: of the arrays.

    Raises:
        DataError: an array can't be read.
    """
    import tensorstore  # noqa: PLC0415 - a dependency of Orbax

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
    except Exception as error:  # of many types
        raise DataError(f"an array can't be read ({str(error).splitlines()[0][:160]})") from error


def _kvstore(path: str) -> dict[str, str]:
    """TensorStore's spec of a path; in its URLs, "%" and "#" would have a meaning."""
    scheme, separator, rest = path.partition("://")
    if not separator:
        return {"driver": "file", "path": path}
    bucket, _, inside = rest.partition("/")
    return {"driver": {"gs": "gcs"}.get(scheme, scheme), "bucket": bucket, "path": inside}


def own_step(state: Any) -> int | None:
    """The step stored in a train state; None if the state has none.

    Older versions stored the step only there, not beside the state.
    """
    leaf = named_leaves(state).get("step")
    if leaf is None:
        return None
    return int(np.max(leaf.addressable_data(0)))  # all seeds have the same step


def check_step(step: int, saved: int | None) -> None:
    """Check that a checkpoint wasn't copied or renamed to another step.

    Raises:
        CorruptionError: it was.
    """
    if saved not in (step, None):
        raise CorruptionError(f"it is a copy of the checkpoint of step {saved}")


def check_run(own: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Check that a checkpoint wasn't copied from another run.

    Args:
        own: values that identify the run, by name.
        saved: those that the checkpoint was saved with. Names of only one of the two don't count:
            another version may have other fields.

    Raises:
        ForeignCheckpointError: it was, or the fields of the run were changed since.
    """
    for name in own:
        if name in saved and saved[name] != own[name]:
            values = f"{name} is {saved[name]!r} there, {own[name]!r} here"
            raise ForeignCheckpointError(f"it is a checkpoint of another run: {values}")


def sealed(document: dict[str, Any]) -> dict[str, Any]:
    """The document with its own digest as the field "seal"."""
    return document | {"seal": _digest(document)}


def unsealed(document: dict[str, Any]) -> dict[str, Any]:
    """The document without its digest.

    Raises:
        CorruptionError: the digest doesn't match.
    """
    inner = {name: value for name, value in document.items() if name != "seal"}
    if document.get("seal") != _digest(inner):
        raise CorruptionError("its progress fails its checksum")
    return inner


def _digest(document: dict[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
