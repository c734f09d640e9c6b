"""A network as a module of Flax NNX."""

from collections.abc import Mapping
from typing import Any

from flax import nnx
from flax.core import unfreeze
from flax.nnx.bridge.variables import linen_vars_to_nnx_attrs

from resnet_jax.models.network import Network


def to_nnx(
    model: Network, variables: Mapping[str, Any], *, rngs: nnx.Rngs | None = None
) -> nnx.bridge.ToNNX:
    """Wrap a network and its variables as an NNX module, by Flax's bridge.

        network = resnet_jax.to_nnx(model, variables)
        logits = network(images)
        logits = network(images, train=True, mutable=["batch_stats"])  # updates running statistics
        taps = network(images, method="features")

    The module computes what `model.apply` computes. It works with `nnx.jit`, `nnx.grad`,
    `nnx.Optimizer` and `nnx.split`, and holds `nnx.Param` and `nnx.BatchStat` at the paths of the
    variables, such as `network.conv1["kernel"]`. Networks of `scan=True` work alike.

    Args:
        model: a network; its `train` and `update_stats` are arguments of the calls.
        variables: of `init_variables` or `load_weights`; they aren't copied.
        rngs: streams of random keys for training with dropout or stochastic depth, such as
            `nnx.Rngs(dropout=0)`; None if nothing is random.

    Returns:
        The module. `nnx.to_pure_dict(nnx.state(network, nnx.Param))` are the variables "params"
        again, and with `nnx.BatchStat` "batch_stats".
    """
    network = nnx.bridge.ToNNX(model, rngs=rngs)
    for name, value in linen_vars_to_nnx_attrs(unfreeze(dict(variables))).items():
        setattr(network, name, nnx.data(value))
    return network
