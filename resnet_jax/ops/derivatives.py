"""Functions with a backward pass written by hand, which also support forward mode.

`jax.custom_vjp` doesn't support forward mode, and inside `jax.shard_map` it requires that a
cotangent varies over the mesh axes over which its argument varies. `differentiable` has neither
restriction.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Levels = tuple[tuple[bool, ...], ...]
"""For each enclosing `jax.vmap`, outermost first: which operands have its axis, in front."""


def vary_alike(*arrays: Array) -> tuple[Array, ...]:
    """Make all arrays vary over the mesh axes over which any of them varies.

    Outside `jax.shard_map` no array varies. The cotangent of an array that is made to vary is
    summed over the added axes.
    """
    varying = [jax.typeof(array).mat.varying for array in arrays]
    axes = frozenset().union(*varying)
    return tuple(
        lax.pcast(array, tuple(axes - own), to="varying")
        for array, own in zip(arrays, varying, strict=True)
    )


def mapped(function: Callable[..., Any], levels: Levels) -> Callable[..., Any]:
    """Apply one `jax.vmap` per level to the function."""
    for level in reversed(levels):
        function = jax.vmap(function, in_axes=tuple(0 if has else None for has in level))
    return function


def result_types(function: Callable[..., Any], *avals: Any) -> Sequence[Any]:
    """Abstract values of a function's results, in the order of their leaves."""
    return jax.make_jaxpr(function)(*avals).out_avals


class _Rules(NamedTuple):
    """The arguments of `differentiable`."""

    function: Callable[..., Any]
    forward: Callable[..., Any]
    backward: Callable[..., Any]


def differentiable(
    function: Callable[..., Any],
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    *,
    static: int,
) -> Callable[..., Any]:
    """Give a function of arrays its own backward pass.

    JAX derives the derivatives in forward mode, and the derivatives of the backward pass.

    Args:
        function: takes arrays (or None) first, and `static` hashable arguments last.
        forward: takes the same arguments; returns (the results of `function`, residuals).
        backward: takes the static arguments, the residuals and the cotangents of the results;
            returns the cotangents of the arrays as a tuple, with None for None.
        static: number of arguments that aren't arrays.

    Returns:
        A function of the arguments of `function`.
    """
    rules = _Rules(function, forward, backward)

    def call(*args: Any) -> Any:
        arrays, rest = args[:-static], args[-static:]
        leaves, tree = jax.tree.flatten(arrays)
        return derived(rest, *jax.tree.unflatten(tree, vary_alike(*leaves)))

    def plain(rest: tuple[Any, ...], *arrays: Any) -> Any:
        return function(*arrays, *rest)

    def rule(rest: tuple[Any, ...], arrays: Any, tangents: Any) -> tuple[Any, Any]:
        results, kept = forward(*arrays, *rest)
        known, known_tree = jax.tree.flatten((arrays, kept))
        along, in_tree = jax.tree.flatten(tangents)
        out_tree = jax.tree.structure(results)
        slopes = _linear_p.bind(
            *known,
            *along,
            rules=rules,
            static=rest,
            trees=(known_tree, in_tree, out_tree),
            transposed=False,
            levels=(),
        )
        return results, jax.tree.unflatten(out_tree, slopes)

    derived = jax.custom_jvp(plain, nondiff_argnums=(0,))
    derived.defjvp(rule)
    return call


# A linear map of tangents (or, transposed, of cotangents), given known arrays. JAX's own
# `linear_call` supports neither `jax.vmap` nor derivatives with respect to the known arrays.
_linear_p = Primitive("resnet_jax_linear")
_linear_p.multiple_results = True


def _linear(
    *operands: Array,
    rules: _Rules,
    static: tuple[Any, ...],
    trees: tuple[Any, Any, Any],
    transposed: bool,
    levels: Levels,
) -> list[Array]:
    known_tree, in_tree, _ = trees

    def single(*operands: Array) -> list[Array]:
        known, given = _parted(operands, known_tree)
        arrays, kept = jax.tree.unflatten(known_tree, known)
        tangents = jax.tree.unflatten(in_tree, given)
        if transposed:
            return jax.tree.leaves(rules.backward(*static, kept, tangents))
        return jax.tree.leaves(
            jax.jvp(lambda *arrays: rules.function(*arrays, *static), arrays, tangents)[1]
        )

    return mapped(single, levels)(*operands)


def _parted(operands: Sequence[Any], known_tree: Any) -> tuple[list[Any], list[Any]]:
    count = known_tree.num_leaves
    return list(operands[:count]), list(operands[count:])


def _linear_jvp(primals: Any, tangents: Any, **params: Any) -> tuple[list[Array], list[Any]]:
    known_tree = params["trees"][0]
    known, given = _parted(primals, known_tree)
    of_known, of_given = _parted(tangents, known_tree)
    results = _linear_p.bind(*primals, **params)
    slopes: list[Any] = [ad.Zero(jax.typeof(y).to_tangent_aval()) for y in results]
    if not all(type(t) is ad.Zero for t in of_given):
        slopes = _linear_p.bind(*known, *map(ad.instantiate_zeros, of_given), **params)
    moving = [i for i, t in enumerate(of_known) if type(t) is not ad.Zero]
    if moving:

        def of(*moved: Array) -> list[Array]:
            replaced = dict(zip(moving, moved, strict=True))
            return _linear(*(replaced.get(i, a) for i, a in enumerate(known)), *given, **params)

        own = jax.jvp(of, tuple(known[i] for i in moving), tuple(of_known[i] for i in moving))[1]
        slopes = [ad.add_tangents(a, b) for a, b in zip(slopes, own, strict=True)]
    return results, slopes


def _linear_transpose(cotangents: Any, *operands: Any, **params: Any) -> list[Any]:
    known_tree, in_tree, out_tree = params.pop("trees")
    known, given = _parted(operands, known_tree)
    results = _linear_p.bind(
        *known,
        *map(ad.instantiate_zeros, cotangents),
        **params | {"transposed": not params["transposed"]},
        trees=(known_tree, out_tree, in_tree),
    )
    # Tangents that aren't requested are zeros.
    asked = zip(given, results, strict=True)
    return [None] * len(known) + [r if ad.is_undefined_primal(g) else None for g, r in asked]


def _linear_batch(operands: Any, axes: Any, **params: Any) -> tuple[Any, Any]:
    known_count = params["trees"][0].num_leaves
    size = next(a.shape[d] for a, d in zip(operands, axes, strict=True) if d is not None)

    def at_front(operand: Array, axis: int | None) -> Array:
        if axis is not None:
            return jnp.moveaxis(operand, axis, 0)
        return jnp.broadcast_to(operand, (size, *operand.shape))

    # All tangents have the axis, so that all cotangents do.
    mapped_operands = [
        at_front(a, d) if d is not None or i >= known_count else a
        for i, (a, d) in enumerate(zip(operands, axes, strict=True))
    ]
    level = tuple(d is not None or i >= known_count for i, d in enumerate(axes))
    params["levels"] = (level, *params["levels"])
    results = _linear_p.bind(*mapped_operands, **params)
    return results, (0,) * len(results)


def evaluate(primitive: Primitive, plain: Callable[..., Any], *, params: tuple[str, ...]) -> None:
    """Evaluate a primitive by its formula `plain`; outside `jax.jit` as a compiled program.

    `params` are the names of the primitive's parameters.
    """
    compiled = jax.jit(primitive.bind, static_argnames=params)

    def run(*operands: Array, **params: Any) -> Any:
        if jax.config.values["jax_disable_jit"]:
            return plain(*operands, **params)
        return compiled(*operands, **params)

    primitive.def_impl(run)


_linear_p.def_abstract_eval(
    lambda *avals, **params: result_types(lambda *operands: _linear(*operands, **params), *avals)
)
evaluate(_linear_p, _linear, params=("rules", "static", "trees", "transposed", "levels"))
mlir.register_lowering(_linear_p, mlir.lower_fun(_linear, multiple_results=True))
ad.primitive_jvps[_linear_p] = _linear_jvp
ad.primitive_transposes[_linear_p] = _linear_transpose
batching.primitive_batchers[_linear_p] = _linear_batch
