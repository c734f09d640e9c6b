"""A function with another form where oneDNN may be used."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from resnet_jax.ops.derivatives import evaluate, result_types
from resnet_jax.ops.native.conv import is_allowed


def prefer(
    alternative: Callable[..., Any], plain: Callable[..., Any], *arrays: Array, **static: Any
) -> list[Array]:
    """Compute `plain(*arrays, **static)`, or the alternative in programs that may call oneDNN.

    The choice is made when a program is lowered. Derivatives are those of `plain`.

    Args:
        alternative: returns what `plain` returns, or None if it can't.
        plain: returns a tuple of arrays.
        arrays: of both functions.
        static: hashable arguments of both functions.
    """
    rest = tuple(sorted(static.items()))
    return _choice_p.bind(*arrays, functions=(alternative, plain), static=rest)


def _plain(*arrays: Array, functions: Any, static: Any) -> list[Array]:
    return list(functions[1](*arrays, **dict(static)))


def _alternative(*arrays: Array, functions: Any, static: Any) -> list[Array]:
    found = functions[0](*arrays, **dict(static))
    return _plain(*arrays, functions=functions, static=static) if found is None else list(found)


def _lower_on_cpu(ctx: Any, *operands: Any, **params: Any) -> Any:
    formula = _alternative if is_allowed(ctx.module_context) else _plain
    return mlir.lower_fun(functools.partial(formula, **params), multiple_results=True)(
        ctx, *operands
    )


def _jvp(primals: Any, tangents: Any, **params: Any) -> Any:
    slopes = [ad.instantiate_zeros(t) for t in tangents]
    return jax.jvp(functools.partial(_plain, **params), tuple(primals), tuple(slopes))


def _batch(operands: Any, axes: Any, **params: Any) -> Any:
    results = jax.vmap(functools.partial(_plain, **params), in_axes=tuple(axes))(*operands)
    return results, [0] * len(results)


_choice_p = Primitive("resnet_jax_choice")
_choice_p.multiple_results = True
_choice_p.def_abstract_eval(
    lambda *avals, **params: result_types(functools.partial(_plain, **params), *avals)
)
evaluate(_choice_p, _plain)
mlir.register_lowering(_choice_p, mlir.lower_fun(_plain, multiple_results=True))
mlir.register_lowering(_choice_p, _lower_on_cpu, platform="cpu")
ad.primitive_jvps[_choice_p] = _jvp
batching.primitive_batchers[_choice_p] = _batch
