"""How the state of training lies on the mesh: the rules, all of them, in one place.

Kernels, their optimiser state and their moving averages are split over the axis "fsdp" (ZeRO,
Rajbhandari et al. 2019, 1910.02054); all else is small and lies whole on every device. With
`mesh.fsdp` = 1 everything is whole, which is plain data parallelism.
"""

import re
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding, PartitionSpec

SPLIT = r"(params|opt_state|ema)/(.*/)?kernel"
"""Whole paths of the leaves of a train state that are split over "fsdp"."""

GATHERED = "gathered"
"""Name of kernels put together from their shards, for rules about what to recompute."""


def leaf_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """How the array at `path` of a train state is laid out.

    A kernel is split along its output channels or its input channels, whichever are more; along
    neither if the devices can't share them evenly.
    """
    shards = mesh.shape["fsdp"]
    if shards == 1 or not re.fullmatch(SPLIT, path):
        return PartitionSpec()
    channels = {axis: shape[axis] for axis in (-1, -2) if shape[axis] % shards == 0}
    if not channels:
        return PartitionSpec()
    axis = max(channels, key=lambda a: channels[a]) % len(shape)
    return PartitionSpec(*[None] * axis, "fsdp")


def state_shardings(state: Any, mesh: Mesh, *, prefix: str = "") -> Any:
    """The tree of shardings of a train state, or of the part of it whose path is `prefix`."""

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = prefix + jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, leaf_spec(name, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, state)


def gather(params: Any, mesh: Mesh) -> Any:
    """Put split parameters together where they are used; their gradients come out split.

    Each array is one all-gather forward, and its gradient one reduce-scatter. The results have
    the name `GATHERED`: a `jax.checkpoint` that doesn't save it gathers again for the backward
    pass, so that no device ever holds all parameters.
    """
    whole = NamedSharding(mesh, PartitionSpec())

    def one(array: jax.Array, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_replicated:
            return array

        @jax.custom_vjp
        def put_together(shards: jax.Array) -> jax.Array:
            return jax.lax.with_sharding_constraint(shards, whole)

        def forward(shards: jax.Array) -> tuple[jax.Array, None]:
            return put_together(shards), None

        def backward(_: None, gradient: jax.Array) -> tuple[jax.Array]:
            return (jax.lax.with_sharding_constraint(gradient, sharding),)

        put_together.defvjp(forward, backward)
        return checkpoint_name(put_together(array), GATHERED)

    return jax.tree.map(one, params, state_shardings(params, mesh, prefix="params/"))
