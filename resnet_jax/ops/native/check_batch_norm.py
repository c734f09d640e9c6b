"""Random problems of oneDNN's batch normalisation, with results in float64 (see check.py)."""

from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

from resnet_jax.ops.native.batch_norm import call
from resnet_jax.ops.native.library import BatchNormProblem, Library

# Rounding errors relative to the sum of the magnitudes of the terms: of float32 sums in any order,
# and of a result that is rounded to bfloat16.
_SUM_ROUNDING, _BFLOAT16_ROUNDING = 3e-5, 2.0**-8


class Case(NamedTuple):
    """A problem, the values of its arrays, and the right results.

    Attributes:
        problem: the problem.
        x, dy: maps [n, h, w, c].
        scale, bias: [c].
        expected: y, mean, var; or dx, dscale, dbias.
        allowed: the errors of `expected` that rounding allows.
    """

    problem: BatchNormProblem
    x: np.ndarray
    dy: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    expected: tuple[np.ndarray, ...]
    allowed: tuple[np.ndarray, ...]


def draw(rng: np.random.Generator) -> Case:
    """A random problem."""
    n, h, w = (int(rng.integers(1, most)) for most in (10, 20, 20))
    few, many = rng.integers(1, 24), 8 * rng.integers(1, 40)
    shape = (max(n, 2), h, w, int(rng.choice([few, many])))
    backward, bfloat16 = bool(rng.random() < 0.5), bool(rng.random() < 0.3)
    dtype = ml_dtypes.bfloat16 if bfloat16 else np.float32
    x, dy = ((rng.normal(size=shape) + 0.5).astype(dtype).astype(np.float64) for _ in range(2))
    scale, bias = rng.normal(size=(2, shape[3])).astype(np.float32).astype(np.float64)
    problem = BatchNormProblem(backward, bfloat16, shape, epsilon=1e-5)
    results = _gradients(x, dy, scale) if backward else _normalised(x, scale, bias)
    expected, magnitudes = results[::2], results[1::2]
    rounding = (_BFLOAT16_ROUNDING if bfloat16 else 0.0, 0.0, 0.0)
    allowed = tuple(
        _SUM_ROUNDING * magnitude + once * np.abs(value) + 1e-30
        for value, magnitude, once in zip(expected, magnitudes, rounding, strict=True)
    )
    return Case(problem, x, dy, scale, bias, expected, allowed)


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, variance, and the inverse of the standard deviation."""
    mean, var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    return mean, var, 1 / np.sqrt(var + 1e-5)


def _normalised(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, ...]:
    """y, mean and var, each followed by the magnitudes of its terms."""
    mean, var, inverse = _moments(x)
    y = (x - mean) * inverse * scale + bias
    size = (np.abs(x) + np.abs(mean)) * inverse * np.abs(scale) + np.abs(bias)
    return y, size, mean, np.abs(x).mean(axis=(0, 1, 2)), var, np.square(x).mean(axis=(0, 1, 2))


def _gradients(x: np.ndarray, dy: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, ...]:
    """The gradients of x, scale and bias, each followed by the magnitudes of its terms."""
    mean, _, inverse = _moments(x)
    standard = (x - mean) * inverse
    size = (np.abs(x) + np.abs(mean)) * inverse
    axes = (0, 1, 2)
    dx = dy - dy.mean(axes) - standard * (dy * standard).mean(axes)
    dx_size = np.abs(dy) + np.abs(dy).mean(axes) + size * (np.abs(dy) * size).mean(axes)
    return (
        dx * inverse * scale,
        dx_size * inverse * np.abs(scale),
        (dy * standard).sum(axes),
        (np.abs(dy) * size).sum(axes),
        dy.sum(axes),
        np.abs(dy).sum(axes),
    )


def error_of_call(library: Library, case: Case) -> float | None:
    """The error of a call as a multiple of what rounding allows; None if oneDNN fails."""
    dtype = ml_dtypes.bfloat16 if case.problem.bfloat16 else np.float32
    x, second = case.x.astype(dtype), case.dy.astype(dtype)
    scale, bias = case.scale.astype(np.float32), case.bias.astype(np.float32)
    mean, var, _ = (a.astype(np.float32) for a in _moments(case.x))
    dx, dscale = np.empty_like(x), np.empty_like(scale)
    arrays = [np.ascontiguousarray(a) for a in (x, second, scale, bias, mean, var, dx, dscale)]
    if not library.attempt_batch_norm(case.problem, arrays):
        return None
    places = (6, 7, 3) if case.problem.backward else (1, 4, 5)
    return _error(case, [arrays[place] for place in places])


def error_through_xla(library: Library, case: Case) -> float:
    """The error of a call from a compiled program."""
    dtype = ml_dtypes.bfloat16 if case.problem.bfloat16 else np.float32
    x, scale = case.x.astype(dtype), case.scale.astype(np.float32)
    operands: tuple[Any, ...] = (x, scale, case.bias.astype(np.float32))
    if case.problem.backward:
        mean, var, _ = (a.astype(np.float32) for a in _moments(case.x))
        operands = (x, case.dy.astype(dtype), mean, var, scale)

    @jax.jit
    def program(*operands: jax.Array) -> tuple[jax.Array, ...]:
        problem = case.problem
        return call(library, operands, epsilon=problem.epsilon, backward=problem.backward)

    return _error(case, program(*operands))


def _error(case: Case, found: Any) -> float:
    errors = [
        float((np.abs(np.asarray(a, float) - value) / allowed).max())
        for a, value, allowed in zip(found, case.expected, case.allowed, strict=True)
    ]
    return float(np.max(errors))  # NaN if one of them is
