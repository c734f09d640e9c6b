"""Convolution, bias, sum and ReLU as one operation, for inference.

oneDNN ends a convolution with all of these while the results are in registers, which saves reading
and writing maps. XLA fuses nothing into such a call. So `fuse` finds these chains in a function.
Where oneDNN isn't used (see `resnet_jax.ops.conv`), the operation is what it was before.
"""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import (
    ClosedJaxpr,
    Jaxpr,
    JaxprEqn,
    Literal,
    Primitive,
    Var,
    jaxpr_as_fun,
)
from jax.interpreters import ad, batching, mlir

from resnet_jax.ops.activation import relu
from resnet_jax.ops.conv import conv2d, is_forward
from resnet_jax.ops.conv_cpu import Window
from resnet_jax.ops.derivatives import evaluate, result_types
from resnet_jax.ops.native import conv as native

_RECOMPUTED = ("checkpoint", "remat2")
"""Names of the primitive of `jax.checkpoint`."""


class Ends(NamedTuple):
    """What follows a convolution, in this order.

    Attributes:
        bias: an array [co] is added; the sum is computed in its type.
        summand: an array of the shape and type of the features is added.
        relu: the maximum with 0.
    """

    bias: bool = False
    summand: bool = False
    relu: bool = False


def fuse(function: Callable[..., Any], *, packed: bool = False) -> Callable[..., Any]:
    """The function with each chain of convolution, bias, sum and ReLU as one operation.

    The bodies of loops stay as they are (`model.scan`).

    Args:
        function: of trees of arrays, such as `model.apply`. Keyword arguments may be anything.
        packed: the function is for a single CPU, and kernels are reordered for oneDNN in operations
            of their own, which `resnet_jax.ops.prepared` computes once.

    Returns:
        A function of the same arguments and results. Results differ by rounding. NaN stays NaN;
        where oneDNN is used, ReLU of minus infinity is NaN. Derivatives of every order exist,
        unless the function is packed.
    """

    @functools.wraps(function)
    def fused(*args: Any, **kwargs: Any) -> Any:
        given = functools.partial(function, **kwargs)
        closed, shapes = jax.make_jaxpr(given, return_shape=True)(*args)
        results = _Run(closed.jaxpr, packed)(closed.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return fused


class _Chain(NamedTuple):
    """A convolution and what follows it so far, still to be computed.

    Attributes:
        x, kernel, window: of the convolution.
        dtype: of the result; the type of `x`, or a wider one for a sum with the bias.
        bias, summand: arrays of the sums, if there are any.
        relu: whether the chain ends with ReLU.
    """

    x: Array
    kernel: Array
    window: Window
    dtype: Any
    bias: Array | None = None
    summand: Array | None = None
    relu: bool = False

    def compute(self, *, packed: bool) -> Array:
        """The result; `packed` as in `fuse`."""
        rest = [a for a in (self.bias, self.summand) if a is not None]
        ends = Ends(self.bias is not None, self.summand is not None, self.relu)
        if packed and self.dtype == self.x.dtype:
            y = native.forward(
                self.x,
                self.kernel,
                self.window,
                bias=self.bias,
                summand=self.summand,
                relu=self.relu,
                packed=True,
            )
            if y is not None:
                return y
        if self.dtype == self.x.dtype and ends != Ends():
            return _fused_p.bind(self.x, self.kernel, *rest, window=self.window, ends=ends)
        y = _plain(self.x, self.kernel, window=self.window, ends=Ends()).astype(self.dtype)
        return y if self.bias is None else y + self.bias  # not rounded to the type of `x`

    def add(self, other: Array) -> "_Chain | None":
        """The sum with an array of the shape of the features, where it can be fused."""
        if self.relu or self.summand is not None or self.dtype != self.x.dtype:
            return None
        alike = other.dtype == self.dtype
        return self._replace(summand=other) if alike else None

    def add_bias(self, bias: Array) -> "_Chain | None":
        """The sum with an array [co], where it can be fused."""
        if self.relu or self.summand is not None or self.bias is not None:
            return None
        return self._replace(bias=bias) if bias.dtype == self.dtype else None


class _Run:
    """Runs a program, and computes chains when their results are needed."""

    def __init__(self, program: Jaxpr, packed: bool) -> None:
        self._program = program
        self._packed = packed
        self._values: dict[Var, Any] = {}
        self._rows: dict[Var, Array] = {}  # arrays [c] of which values are copies along n, h, w
        used = [v for eqn in program.eqns for v in eqn.invars] + list(program.outvars)
        self._uses = Counter(v for v in used if isinstance(v, Var))

    def __call__(self, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        """The results of the program."""
        program = self._program
        known = (*program.constvars, *program.invars)
        self._values.update(zip(known, (*consts, *args), strict=True))
        for eqn in program.eqns:
            chain = self._chain(eqn)
            if chain is not None:
                self._values[eqn.outvars[0]] = chain
            else:
                self._values |= self._compute(eqn)
        return [self._read(v) for v in program.outvars]

    def _read(self, atom: Any) -> Any:
        if isinstance(atom, Literal):
            return atom.val
        if isinstance(self._values[atom], _Chain):
            self._values[atom] = self._values[atom].compute(packed=self._packed)
        return self._values[atom]

    def _compute(self, eqn: JaxprEqn) -> dict[Var, Any]:
        """The results of an equation that are used."""
        if eqn.primitive.name in _RECOMPUTED:  # which means nothing for inference
            operands = [self._read(v) for v in eqn.invars]
            run = _Run(eqn.params["jaxpr"], self._packed)
            return dict(zip(eqn.outvars, run((), operands), strict=True))
        if eqn.primitive is lax.broadcast_in_dim_p:
            self._note_row(eqn)
        given = {v: self._read(v) for v in eqn.invars if isinstance(v, Var)}
        wanted = [v for v in eqn.outvars if self._uses[v]]
        alone = self._program.replace(constvars=[], invars=list(given), outvars=wanted, eqns=[eqn])
        results = jaxpr_as_fun(ClosedJaxpr(alone, ()))(*given.values())
        return dict(zip(wanted, results, strict=True))

    def _note_row(self, eqn: JaxprEqn) -> None:
        last = len(eqn.params["shape"]) - 1
        axes, source = eqn.params["broadcast_dimensions"], eqn.invars[0]
        value = self._read(source)
        if axes == (last,) and jnp.shape(value) == eqn.params["shape"][last:]:
            self._rows[eqn.outvars[0]] = value
        elif source in self._rows and axes == tuple(range(last + 1)):
            self._rows[eqn.outvars[0]] = self._rows[source]

    def _open(self, atom: Any) -> _Chain | None:
        """A chain that nothing else uses."""
        value = None if isinstance(atom, Literal) else self._values[atom]
        return value if isinstance(value, _Chain) and self._uses[atom] == 1 else None

    def _chain(self, eqn: JaxprEqn) -> _Chain | None:
        """The chain that an equation begins or continues."""
        name = eqn.primitive.name
        if is_forward(eqn):
            x, kernel = (self._read(v) for v in eqn.invars)
            return _Chain(x, kernel, eqn.params["window"], x.dtype)
        if name in ("add", "add_any"):
            return self._sum(*eqn.invars)
        if name == "mul":
            ones = [isinstance(v, Literal) and v.val == 1 for v in eqn.invars]
            return self._open(eqn.invars[1 - ones.index(True)]) if any(ones) else None
        chain = self._open(eqn.invars[0]) if len(eqn.invars) > 0 else None
        if chain is None:
            return None
        if name == "convert_element_type":
            dtype = eqn.params["new_dtype"]
            wide = jnp.promote_types(chain.dtype, jnp.float32)
            is_widened = dtype == wide and chain.bias is chain.summand is None and not chain.relu
            fits = dtype == chain.x.dtype or is_widened
            return chain._replace(dtype=dtype) if fits else None
        if _is_relu(eqn):
            return chain._replace(relu=True) if chain.dtype == chain.x.dtype else None
        return None

    def _sum(self, a: Any, b: Any) -> _Chain | None:
        for atom, other in ((b, a), (a, b)):
            chain = self._open(atom)
            if chain is None or isinstance(other, Literal):
                continue
            if other in self._rows:
                longer = chain.add_bias(self._rows[other])
            elif other.aval.shape == atom.aval.shape:
                longer = chain.add(self._read(other))
            else:
                longer = None
            if longer is not None:
                return longer
        return None


def _is_relu(eqn: JaxprEqn) -> bool:
    """Whether an equation is the maximum with 0, with a rule for its derivative or without."""
    if eqn.primitive is lax.max_p:
        second = eqn.invars[1]
        return isinstance(second, Literal) and second.val == 0
    inner = eqn.params.get("call_jaxpr") or eqn.params.get("jaxpr")
    equations: Sequence[Any] = getattr(inner, "eqns", ())
    return len(eqn.invars) == 1 and len(equations) == 1 and _is_relu(equations[0])


def _plain(x: Array, kernel: Array, *rest: Array, window: Window, ends: Ends) -> Array:
    y = conv2d(
        x,
        kernel,
        strides=window.strides,
        padding=window.padding,
        feature_group_count=window.groups,
        dilation=window.dilation,
    )
    bias, summand = _parted(rest, ends)
    if bias is not None:
        y = (y.astype(bias.dtype) + bias).astype(y.dtype)
    if summand is not None:
        y += summand
    return relu(y) if ends.relu else y


def _parted(rest: Sequence[Array], ends: Ends) -> tuple[Array | None, Array | None]:
    arrays = iter(rest)
    return next(arrays) if ends.bias else None, next(arrays) if ends.summand else None


def _on_cpu(x: Array, kernel: Array, *rest: Array, window: Window, ends: Ends) -> Array:
    bias, summand = _parted(rest, ends)
    y = native.forward(x, kernel, window, bias=bias, summand=summand, relu=ends.relu)
    return _plain(x, kernel, *rest, window=window, ends=ends) if y is None else y


def _lower_on_cpu(ctx: Any, *operands: Any, **params: Any) -> Any:
    formula = _on_cpu if native.is_allowed(ctx.module_context) else _plain
    return mlir.lower_fun(functools.partial(formula, **params), multiple_results=False)(
        ctx, *operands
    )


def _jvp(primals: Any, tangents: Any, **params: Any) -> Any:
    slopes = [ad.instantiate_zeros(t) for t in tangents]
    return jax.jvp(functools.partial(_plain, **params), tuple(primals), tuple(slopes))


def _batch(operands: Any, axes: Any, **params: Any) -> Any:
    return jax.vmap(functools.partial(_plain, **params), in_axes=tuple(axes))(*operands), 0


_fused_p = Primitive("resnet_jax_fused_conv")
_fused_p.def_abstract_eval(
    lambda *avals, **params: result_types(functools.partial(_plain, **params), *avals)[0]
)
evaluate(_fused_p, _plain, params=("window", "ends"))
mlir.register_lowering(_fused_p, mlir.lower_fun(_plain, multiple_results=False))
mlir.register_lowering(_fused_p, _lower_on_cpu, platform="cpu")
ad.primitive_jvps[_fused_p] = _jvp
batching.primitive_batchers[_fused_p] = _batch
