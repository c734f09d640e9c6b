"""Gradient norms of networks at initialisation, by layer."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from resnet_jax.models.presets import create_model, init_variables
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.summary import summarize
from resnet_jax.models.surgery import unstack_units
from resnet_jax.train.losses import cross_entropy

_IMAGE, _BATCH = (32, 32, 3), 32


def make_network(depth: int, **fields: Any) -> ResNet:
    """A CIFAR network of 6n + 2 layers with scanned blocks, which compiles quickly."""
    model = create_model(f"resnet{depth}", scan=True, **fields)
    assert isinstance(model, ResNet)
    return model


@functools.partial(jax.jit, static_argnums=0)
def _gradients(model: ResNet, variables: Any, key: jax.Array) -> Any:
    of_images, of_labels = jax.random.split(key)
    images = jax.random.normal(of_images, (_BATCH, *_IMAGE))
    labels = jax.random.randint(of_labels, (_BATCH,), 0, model.num_classes)

    def loss(params: Any) -> jax.Array:
        logits, _ = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return cross_entropy(logits, labels).mean()

    return jax.grad(loss)(variables["params"])


def gradient_norms(
    model: ResNet, seeds: Sequence[int], *, change: Callable[[Any], Any] = lambda params: params
) -> Float[np.ndarray, "seeds layers"]:
    """Norms of the gradients of the training loss by the kernels of the blocks' branches.

    The batch has 32 images of Gaussian noise with standard deviation 1, and random labels. Images,
    labels and initial values are functions of the seed.

    Args:
        model: made by `make_network`.
        seeds: the seeds.
        change: from the initial parameters to the parameters to use.

    Returns:
        The norms, in the order of computation.
    """
    unrolled = model.copy(scan=False)
    names = [
        layer.path
        for layer in summarize(unrolled, _IMAGE).layers
        if layer.path.startswith("layer") and layer.path.rpartition("/")[2].startswith("conv")
    ]
    norms = []
    for seed in seeds:
        of_network, of_data = jax.random.split(jax.random.key(seed))
        variables = init_variables(model, of_network, _IMAGE)
        variables = {**variables, "params": change(variables["params"])}
        found = unstack_units({"params": _gradients(model, variables, of_data)})
        kernels = [_at(found["params"], name)["kernel"] for name in names]
        norms.append([float(jnp.linalg.norm(kernel)) for kernel in kernels])
    return np.array(norms)


def _at(tree: Any, path: str) -> Any:
    for name in path.split("/"):
        tree = tree[name]
    return tree
