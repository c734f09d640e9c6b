"""Layer-wise learning rates: the update of a layer is proportional to the norm of its parameters.

Stacked blocks (`model.scan`) count as separate layers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

Rule = Callable[[jax.Array, jax.Array], jax.Array]


def scale_by_lars(
    *, coefficient: float, weight_decay: float | jax.Array
) -> optax.GradientTransformation:
    """λ (g + β w) with λ = η ‖w‖ / (‖g‖ + β ‖w‖), for each layer (You et al. 2017, 1708.03888).

    g is the gradient, w the parameter, η `coefficient` and β `weight_decay`. λ is 1 where a norm
    is 0. This is the rule of the paper and of MLPerf; `optax.lars` divides by ‖g + β w‖ instead.
    """

    def rule(gradient: jax.Array, weights: jax.Array) -> jax.Array:
        size, slope = optax.tree.norm(weights), optax.tree.norm(gradient)
        trust = coefficient * size / (slope + weight_decay * size)
        return _or_one(trust, size, slope) * (gradient + weight_decay * weights)

    return _by_layer(rule)


def scale_by_trust_ratio() -> optax.GradientTransformation:
    """u ‖w‖ / ‖u‖ for the update u of each layer (You et al. 2019, 1904.00962, algorithm 2).

    The factor is 1 where a norm is 0. `optax.scale_by_trust_ratio` treats a stack as one layer.
    """

    def rule(update: jax.Array, weights: jax.Array) -> jax.Array:
        size, length = optax.tree.norm(weights), optax.tree.norm(update)
        return _or_one(size / length, size, length) * update

    return _by_layer(rule)


def _or_one(ratio: jax.Array, *norms: jax.Array) -> jax.Array:
    return jnp.where(jnp.array([norm > 0 for norm in norms]).all(), ratio, 1.0)


def _by_layer(rule: Rule) -> optax.GradientTransformation:
    def scale(path: tuple[Any, ...], update: jax.Array, weights: jax.Array) -> jax.Array:
        stacked = path[0].key.endswith("_rest")
        return (jax.vmap(rule) if stacked else rule)(update, weights)

    return optax.stateless(
        lambda updates, params: jax.tree_util.tree_map_with_path(scale, updates, params)
    )
