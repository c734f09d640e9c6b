"""Sharding rules of the train state.

Kernels, their optimiser state and their moving averages are split over the axis "fsdp" (ZeRO,
Rajbhandari et al. 2019, 1910.02054). All other arrays are small and replicated. With
`mesh.fsdp` = 1 every array is replicated, which is plain data parallelism.
"""

import re
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding, PartitionSpec

SPLIT = r"(params|opt_state|ema)/(.*/)?kernel"
"""Pattern of the paths of train-state leaves that are split over "fsdp"."""

GATHERED = "gathered"
"""`checkpoint_name` of gathered kernels, for rematerialisation policies."""


def leaf_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Partition spec of the array at `path` of a train state.

    A kernel is split along its output channels or its input channels, whichever number is larger
    and divisible by the number of devices along "fsdp". If neither is, the kernel is replicated.
    """
    shards = mesh.shape["fsdp"]
    if shards == 1 or not re.fullmatch(SPLIT, path):
        return PartitionSpec()
    axes = (-1, -2)[: len(shape)]  # optimisers may have fewer axes for a kernel, as Adafactor has
    channels = {axis: shape[axis] for axis in axes if shape[axis] % shards == 0}
    if not channels:
        return PartitionSpec()
    axis = max(channels, key=lambda a: channels[a]) % len(shape)
    return PartitionSpec(*[None] * axis, "fsdp")


def state_shardings(state: Any, mesh: Mesh, *, prefix: str = "") -> Any:
    """Tree of shardings of a train state, or of the subtree at path `prefix`."""

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = prefix + jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, leaf_spec(name, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, state)


def gather(params: Any, mesh: Mesh) -> Any:
    """Gather sharded parameters for use in a computation; their gradients are sharded again.

    Each array takes one all-gather in the forward pass and one reduce-scatter for its gradient.
    The results have the `checkpoint_name` `GATHERED`: a `jax.checkpoint` that doesn't save this
    name gathers again in the backward pass, so that no device ever holds all parameters.
    """
    whole = NamedSharding(mesh, PartitionSpec())

    def gather_one(array: jax.Array, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_replicated:
            return array

        @jax.custom_vjp
        def all_gather(shards: jax.Array) -> jax.Array:
            return jax.lax.with_sharding_constraint(shards, whole)

        def forward(shards: jax.Array) -> tuple[jax.Array, None]:
            return all_gather(shards), None

        def backward(_: None, gradient: jax.Array) -> tuple[jax.Array]:
            return (jax.lax.with_sharding_constraint(gradient, sharding),)

        all_gather.defvjp(forward, backward)
        return checkpoint_name(all_gather(array), GATHERED)

    return jax.tree.map(gather_one, params, state_shardings(params, mesh, prefix="params/"))
