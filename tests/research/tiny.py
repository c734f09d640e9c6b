"""A tiny residual network for tests of research."""

import jax

import resnet_jax

SHAPE = (8, 8, 3)
"""Of the images."""


def make_tiny_network(sizes=(2, 2), **fields):
    """(Model, variables) of a CIFAR network of width 4."""
    model = resnet_jax.create_model("resnet20", stage_sizes=sizes, width=4, stem_width=4, **fields)
    return model, resnet_jax.init_variables(model, jax.random.key(0), SHAPE)
