"""Fixed shards: a batch as S logical shards, with the same bits on any mesh.

Floating-point sums depend on their order, and XLA chooses orders by the number of devices. With
fixed shards nothing that is computed depends on that number: each device takes its S/n shards one
after another through the same loop body, and results are summed over the shards as a binary tree.
Shards 0 and 1 are summed, 2 and 3, then the sums of these pairs, and so on. A device's own shards
are a subtree; the upper levels are ordered sums of the devices' subtrees.
"""

import dataclasses
import logging
import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Int, Num

from resnet_jax.errors import ConfigError
from resnet_jax.parallel.mesh import AXES

Tree = TypeVar("Tree")

_POOL = "PJRT_NPROC"  # environment variable
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FixedShards:
    """The shards of a batch, and the devices that compute them.

    All methods but `map_devices` are for functions that run on each device, within `map_devices`.

    Attributes:
        count: number of shards S, a power of two.
        mesh: the devices, of which each has the same number of neighbouring shards.
    """

    count: int
    mesh: Mesh

    @property
    def per_device(self) -> int:
        """Number of shards of each device."""
        return self.count // self.mesh.size

    @property
    def compiler_options(self) -> dict[str, bool | int]:
        """Options for `jax.jit`, by the platform, whatever the user's `XLA_FLAGS` are.

        On CPUs they are XLA's defaults: less optimised code contracts some multiply-adds and not
        others of the same operation. On GPUs, some kernels otherwise sum in a random order, and XLA
        chooses the kernels of each program by their time.
        """
        platform = self.mesh.devices.flat[0].platform
        if platform == "cpu":
            # Later versions of jax always use the fusion emitters.
            emitters = jax.__version_info__ < (0, 11)
            return {"xla_backend_optimization_level": 3} | (
                {"xla_cpu_use_fusion_emitters": True} if emitters else {}
            )
        return {"xla_gpu_deterministic_ops": True} if platform in ("gpu", "cuda") else {}

    def map_devices(
        self, function: Callable[..., Any], *, in_shardings: Any, out_shardings: Any
    ) -> Callable[..., Any]:
        """Run a function on each device, on the parts of the arrays that lie there."""
        in_specs, out_specs = jax.tree.map(
            lambda sharding: sharding.spec, (in_shardings, out_shardings)
        )
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )

    def sum(self, of_shard: Callable[[Any, Int[Array, ""]], Tree], batch: Any) -> Tree:
        """Sum a function of a shard over all shards, as a binary tree.

        Args:
            of_shard: from the arrays of a shard and the shard's number, 0 to S - 1.
            batch: arrays [examples of this device, …]; their number is a multiple of `per_device`.

        Returns:
            The sums, on every device.
        """
        shards = jax.tree.map(lambda a: a.reshape(self.per_device, -1, *a.shape[1:]), batch)
        first = jax.lax.axis_index(AXES) * self.per_device

        def compute(i: Array) -> Tree:
            shard = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, i, 0, False), shards)
            return isolated(of_shard, shard, first + i)

        shapes = jax.eval_shape(compute, jax.ShapeDtypeStruct((), jnp.int32))
        levels = self.per_device.bit_length()
        stacks = [jnp.zeros((levels, v.size), v.dtype) for v in jax.eval_shape(_pack, shapes)]

        def body(i: Array, stacks: list[Array]) -> list[Array]:
            return _push(stacks, i, _pack(compute(i)))

        # A loop of run-time length: XLA compiles loops of one or of few turns in other ways.
        turns = unknown_to_xla(jnp.int32(self.per_device))
        stacks = jax.lax.fori_loop(0, turns, body, stacks)
        sums = [self._sum_devices(stack[-1]) for stack in stacks]
        return _unpack(sums, shapes)

    def _sum_devices(self, vector: Num[Array, " p"]) -> Num[Array, " p"]:
        """Sum over the devices as a binary tree, with the traffic of an all-reduce.

        Each device receives its part of the vector from all others, adds the parts in the order of
        the mesh, and sends the sum to all others.
        """
        devices, size = self.mesh.size, vector.size
        if devices == 1:
            return vector
        parts = jnp.pad(vector, (0, -size % devices)).reshape(devices, -1)
        parts = jax.lax.all_to_all(parts, AXES, split_axis=0, concat_axis=0)
        while len(parts) > 1:
            parts = parts[0::2] + parts[1::2]
        return jax.lax.all_gather(parts[0], AXES, tiled=True)[:size]

    def gather(self, tree: Tree, shardings: Any) -> Tree:
        """Gather arrays that are split over "fsdp", given their `state_shardings`."""

        def whole(array: Array, sharding: NamedSharding) -> Array:
            if "fsdp" not in sharding.spec:
                return array
            axis = sharding.spec.index("fsdp")
            return jax.lax.all_gather(array, "fsdp", axis=axis, tiled=True)

        return jax.tree.map(whole, tree, shardings)

    def split(self, tree: Tree, shardings: Any) -> Tree:
        """Return a device's part of whole arrays: the inverse of `gather`."""

        def part(array: Array, sharding: NamedSharding) -> Array:
            if "fsdp" not in sharding.spec:
                return array
            axis = sharding.spec.index("fsdp")
            size = array.shape[axis] // self.mesh.shape["fsdp"]
            start = jax.lax.axis_index("fsdp") * size
            return jax.lax.dynamic_slice_in_dim(array, start, size, axis)

        return jax.tree.map(part, tree, shardings)


def make_shards(count: int, mesh: Mesh) -> FixedShards | None:
    """The shards of `mesh.shards` = `count`; None for 0.

    Raises:
        ConfigError: the shards don't split evenly over the devices.
    """
    if not count:
        return None
    devices, fsdp = mesh.size, mesh.shape["fsdp"]
    if count % devices:
        fewer = 1 << (min(devices, count).bit_length() - 1)
        if devices & (devices - 1) == 0:
            advice = f"mesh.shards = {devices} or a larger power of two"
        elif fsdp == 1:
            advice = f"mesh.data = {fewer}"
        else:
            advice = f"{fewer} devices (mesh.data × mesh.fsdp)"
        raise ConfigError(
            f"mesh.shards is {count}, which isn't divisible by {devices} devices; use {advice}."
        )
    return FixedShards(count, mesh)


def fix_thread_pool(shards: int) -> None:
    """Give XLA's thread pool on CPUs as many threads as there are shards.

    XLA's matrix products on a CPU split long sums by the number of threads, which is otherwise the
    number of cores or of devices in the process, whichever is larger. XLA reads the number from the
    environment variable `PJRT_NPROC` when JAX starts its backend. A variable that the user has set
    stays. A warning is logged if the pool has another size, or may have another size because JAX
    has started already.
    """
    if not shards:
        return
    where = "so CPUs may compute other bits than in other processes"
    if (found := os.environ.get(_POOL, str(shards))) != str(shards):
        _log.warning("%s is %s and mesh.shards is %d, %s.", _POOL, found, shards, where)
    elif not _jax_has_started():
        os.environ[_POOL] = str(shards)
    elif _POOL not in os.environ and jax.default_backend() == "cpu":
        _log.warning(
            "JAX has started without %s=%d (mesh.shards), %s; set %s first.",
            _POOL,
            shards,
            where,
            _POOL,
        )


def _jax_has_started() -> bool:
    from jax._src import xla_bridge  # noqa: PLC0415 - JAX has no public name for it

    return xla_bridge.backends_are_initialized()


def isolated(function: Callable[..., Tree], *arguments: Any) -> Tree:
    """Return `function(*arguments)`, compiled apart from what is before and after.

    Fused with different neighbours, the same operations are rounded differently: a product and a
    sum become a multiply-add or don't. XLA drops an `optimization_barrier` before it fuses on CPUs,
    but it never fuses across a branch whose condition it doesn't know.
    """
    shapes = jax.eval_shape(function, *arguments)

    def nothing(*_: Any) -> Tree:
        return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)

    return jax.lax.cond(unknown_to_xla(jnp.bool_(True)), function, nothing, *arguments)


def unknown_to_xla(value: Array) -> Array:
    """Return the value as if it came from outside, so that XLA doesn't simplify by it."""
    return jax.lax.optimization_barrier(value)


def _push(stacks: list[Array], i: Array, values: list[Array]) -> list[Array]:
    """Add the values of shard `i` to the sums of complete subtrees, one for each level of the tree.

    As in binary counting: where level l holds a sum already, the two become one sum of level l + 1.
    """

    def is_full(carried: tuple[Array, list[Array]]) -> Array:
        return (i >> carried[0]) & 1 == 1

    def carry(carried: tuple[Array, list[Array]]) -> tuple[Array, list[Array]]:
        level, sums = carried
        return level + 1, [stack[level] + s for stack, s in zip(stacks, sums, strict=True)]

    level, sums = jax.lax.while_loop(is_full, carry, (jnp.int32(0), values))
    return [stack.at[level].set(s) for stack, s in zip(stacks, sums, strict=True)]


def _pack(tree: Any) -> list[Array]:
    """Concatenate the arrays of a tree, one vector for each dtype."""
    leaves = jax.tree.leaves(tree)
    return [
        jnp.concatenate([leaf.ravel() for leaf in leaves if leaf.dtype == dtype])
        for dtype in _dtypes(leaves)
    ]


def _unpack(vectors: list[Array], shapes: Tree) -> Tree:
    """The inverse of `_pack`, for a tree of these shapes."""
    leaves, structure = jax.tree.flatten(shapes)
    whole: list[Any] = [None] * len(leaves)
    for vector, dtype in zip(vectors, _dtypes(leaves), strict=True):
        start = 0
        for place, leaf in enumerate(leaves):
            if leaf.dtype == dtype:
                whole[place] = vector[start : start + leaf.size].reshape(leaf.shape)
                start += leaf.size
    return jax.tree.unflatten(structure, whole)


def _dtypes(leaves: list[Any]) -> list[Any]:
    return list(dict.fromkeys(leaf.dtype for leaf in leaves))
