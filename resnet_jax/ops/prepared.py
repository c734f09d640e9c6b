"""Inference with constant variables: whatever depends on the variables alone is computed once.

These are the casts of kernels to bfloat16, for example, standardised weights, and the order of
kernels that oneDNN chooses, which a program would otherwise compute at each call.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Var, jaxpr_as_fun

from resnet_jax.ops.fusion import fuse


class Prepared:
    """A compiled function of constants and arrays, for many calls with the same constants.

    Chains of operations are fused (`fuse`). Each shape of the arrays has a program of its own.
    Programs share what they keep of the constants, as far as that is equal. Derivatives don't
    exist.
    """

    def __init__(self, function: Callable[..., Any], constants: Any) -> None:
        """Compile nothing yet.

        Args:
            function: of a tree of constants and of arrays; gives a tree of arrays.
            constants: arrays on one device, or on several.
        """
        self._function = function
        self._constants = constants
        self._programs: dict[Any, Callable[..., Any]] = {}
        self._kept: dict[bytes, Array] = {}

    def __call__(self, *arrays: Any) -> Any:
        """What the function gives for the constants and these arrays, of JAX or NumPy."""
        shapes = tuple((array.shape, array.dtype) for array in arrays)
        if shapes not in self._programs:
            self._programs[shapes] = self._program(*arrays)
        return self._programs[shapes](*arrays)

    def _program(self, *arrays: Any) -> Callable[..., Any]:
        leaves = jax.tree.leaves(self._constants)
        devices = {device for leaf in leaves for device in leaf.devices()}
        on_one_cpu = [device.platform for device in devices] == ["cpu"]
        fused = fuse(self._function, packed=on_one_cpu)
        closed, shapes = jax.make_jaxpr(fused, return_shape=True)(self._constants, *arrays)
        early, late = (
            jax.jit(jaxpr_as_fun(ClosedJaxpr(program, closed.consts)))
            for program in _split(closed.jaxpr, len(leaves))
        )
        kept = [self._shared(array) for array in early(*leaves)]
        structure = jax.tree.structure(shapes)
        return lambda *arrays: jax.tree.unflatten(structure, late(*kept, *arrays))

    def _shared(self, array: Array) -> Array:
        data = np.asarray(array).tobytes()
        digest = hashlib.sha256(data).digest() + repr(array.aval).encode()
        return self._kept.setdefault(digest, array)


def _split(program: Jaxpr, constants: int) -> tuple[Jaxpr, Jaxpr]:
    """The program in two parts.

    Args:
        program: its first inputs are constants.
        constants: their number.

    Returns:
        A program of the constants, and a program of the results of the first and of the other
        inputs. Copies along new axes, which are large and cheap, are in the second program.
    """
    known = set(program.invars[:constants])
    early, late = [], []
    for eqn in program.eqns:
        given = {v for v in eqn.invars if isinstance(v, Var)} - set(program.constvars)
        if given and given <= known and eqn.primitive is not lax.broadcast_in_dim_p:
            early.append(eqn)
            known.update(eqn.outvars)
        else:
            late.append(eqn)
    used = [v for eqn in late for v in eqn.invars] + list(program.outvars)
    kept = list(dict.fromkeys(v for v in used if isinstance(v, Var) and v in known))
    return (
        program.replace(invars=program.invars[:constants], outvars=kept, eqns=early),
        program.replace(invars=[*kept, *program.invars[constants:]], eqns=late),
    )
