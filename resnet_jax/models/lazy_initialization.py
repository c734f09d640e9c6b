"""Initial variables, without running the network and without compiling it."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from jax.extend import core


class _NotGivenError(ValueError):
    """A result depends on an array whose shape alone is known."""


def initialize(model: nn.Module, key: jax.Array, images: jax.ShapeDtypeStruct) -> Any:
    """Return what `model.init` returns, for images whose shape alone is known.

    Flax's `lazy_init`, which takes longer, is used where the variables can't be separated from the
    computation, as within `nn.jit` or `nn.remat`.
    """
    try:
        return _evaluate_needed(model.init, key, images)
    except _NotGivenError:
        return model.lazy_init(key, images)


def _evaluate_needed(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function with arrays or their shapes; compute only what its results depend on."""
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    needed = {*_variables(closed.jaxpr.outvars)}
    equations = []
    for equation in reversed(closed.jaxpr.eqns):
        if not needed.isdisjoint(equation.outvars):
            equations.append(equation)
            needed.update(_variables(equation.invars))
    given = jax.tree.leaves(args)
    for variable, value in zip(closed.jaxpr.invars, given, strict=True):
        if variable in needed and isinstance(value, jax.ShapeDtypeStruct):
            raise _NotGivenError
    jaxpr = closed.jaxpr.replace(eqns=equations[::-1])
    results = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, closed.consts))(*given)
    return jax.tree.unflatten(jax.tree.structure(shapes), results)


def _variables(atoms: list[Any]) -> list[core.Var]:
    return [atom for atom in atoms if not isinstance(atom, core.Literal)]
