"""Checks oneDNN's convolutions on this machine, by random problems on several threads.

`python -m resnet_jax.ops.native.check LIBRARY SECONDS` prints the result as one line of JSON. A
wrong kernel may also end the process; so `resnet-jax build` starts a process for the check.
"""

import itertools
import json
import math
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from resnet_jax.ops.native.conv import call
from resnet_jax.ops.native.library import KINDS, Library, Problem

_THREADS = 3
_SPLIT = (0, 1, 2, 5)
"""By call: oneDNN's own threads (0), or the number of threads that parts are made for."""
_CALLS = len(_SPLIT)  # of each problem on each thread: some kernels are wrong only sometimes
# Rounding errors of a sum of float32 products in any order, relative to the sum of the products'
# magnitudes, and of a result that is rounded to bfloat16, relative to the result.
_SUM_ROUNDING, _BFLOAT16_ROUNDING = 1e-5, 2.0**-8

# Multiply-adds of a random problem, at most: the largest few percent would take most of the time.
_LARGEST = 1e8

# Problems for which the kernels of some version of oneDNN were wrong or crashed, and first a kernel
# that is so large that five threads share one reordered copy:
# image [n, h, w, ci], kernel size, co, stride, padding on each side, dilation.
_SUSPECTS = [
    ((5, 2, 2, 512), 3, 512, 1, 1, 1),
    ((8, 2, 2, 64), 3, 64, 1, 1, 1),
    ((8, 2, 2, 128), 3, 128, 1, 1, 1),
    ((8, 4, 4, 64), 3, 128, 2, 1, 1),
    ((4, 12, 12, 64), 3, 64, 1, 2, 2),
    ((2, 16, 16, 64), 3, 64, 1, 4, 4),
    ((4, 32, 32, 3), 7, 64, 2, 3, 1),
    ((4, 32, 32, 1), 3, 4, 1, 1, 1),
    ((2, 2, 15, 17), 1, 15, 1, 0, 1),
    ((4, 1, 1, 64), 3, 64, 2, 1, 1),
    ((2, 1, 3, 128), 5, 32, 1, 2, 1),
    *(((8, 8, 8, ci), 1, co, 2, 0, 1) for ci in (1, 4, 7, 9, 16, 20) for co in (8, 20)),
]


def check(
    path: Path, *, seconds: float = math.inf, problems: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Compare a library with sums of products in float64.

    Args:
        path: of the library.
        seconds, problems: the check ends after so many seconds, or so many problems.
        seed: of the problems.

    Returns:
        "oneDNN": its description; "checked": the number of problems; "refused": how many oneDNN has
        no kernel for; "wrong": descriptions of those whose results are wrong.

    Raises:
        OSError: the library can't be loaded.
    """
    library = Library(path)
    deadline = time.monotonic() + seconds
    checked, refused, wrong = 0, 0, []
    for problem, arrays in itertools.islice(_problems(np.random.default_rng(seed)), problems):
        if time.monotonic() > deadline:
            break
        if not library.supports(problem):
            refused += 1
            continue
        error = _error(library, problem, arrays, through_xla=checked < 2 * len(KINDS))
        checked += 1
        if not error <= 1:
            wrong.append(f"{problem}: {error:.3g} times the error that rounding allows")
        if problem.relu and not _keeps_nan(library, problem, arrays):
            wrong.append(f"{problem}: NaN becomes a number")
    return {"oneDNN": library.onednn(), "checked": checked, "refused": refused, "wrong": wrong}


def _problems(rng: np.random.Generator) -> Iterator[tuple[Problem, list[np.ndarray]]]:
    """Endless problems of all kinds, with the float64 values of their arrays and of a bias."""
    suspects = iter(itertools.product(_SUSPECTS, (False, True)))
    while True:
        bfloat16 = bool(rng.random() < 0.3)
        if suspect := next(suspects, None):
            (shape, size, co, stride, pad, dilate), bfloat16 = suspect
            kernel_size, padding = (size, size), ((pad, pad), (pad, pad))
            strides, dilation = (stride, stride), (dilate, dilate)
        else:
            shape, kernel_size, co, strides, padding, dilation = _draw(rng)
        sizes = [
            (shape[a + 1] + sum(padding[a]) - dilation[a] * (kernel_size[a] - 1) - 1) // strides[a]
            for a in (0, 1)
        ]
        shapes = (shape, (*kernel_size, shape[3], co), (shape[0], sizes[0] + 1, sizes[1] + 1, co))
        if min(sizes) < 0 or math.prod(shapes[1]) * math.prod(shapes[2][:3]) > _LARGEST:
            continue
        dtype = ml_dtypes.bfloat16 if bfloat16 else np.float32
        arrays = [rng.normal(size=s).astype(dtype).astype(np.float64) for s in shapes]
        arrays.append(rng.normal(size=shapes[1][3]).astype(np.float32).astype(np.float64))
        for kind in KINDS:
            problem = Problem(kind, bfloat16, shapes, strides, padding, dilation)
            yield problem, arrays
            if kind == "forward":
                bias, summand, relu = (rng.random(3) < 0.5).tolist()
                yield problem._replace(has_bias=bias, has_sum=summand, relu=relu), arrays


def _draw(rng: np.random.Generator) -> tuple[Any, ...]:
    def channels() -> int:
        few, many = rng.integers(1, 24), 8 * rng.integers(1, 25)
        return int(rng.choice([few, many, rng.integers(1, 80)]))

    n, h, w = (int(rng.integers(1, most)) for most in (10, 24, 24))
    kh = int(rng.choice([1, 1, 2, 3, 3, 3, 4, 5, 7]))
    kw = kh if rng.random() < 0.8 else int(rng.integers(1, 5))
    stride = int(rng.choice([1, 1, 2, 2, 3]))
    strides = (stride, stride if rng.random() < 0.9 else 1)
    dilation = int(rng.choice([1, 1, 1, 2, 3, 4]))

    def pad(size: int) -> tuple[int, int]:
        reach = dilation * (size - 1)
        if rng.random() < 0.7:
            return (reach // 2, reach // 2)
        low, high = rng.integers(0, reach + 1, 2)
        return int(low), int(high)

    return (n, h, w, channels()), (kh, kw), channels(), strides, (pad(kh), pad(kw)), (dilation,) * 2


def _error(
    library: Library, problem: Problem, arrays: list[np.ndarray], *, through_xla: bool
) -> float:
    """The largest error of any call on any thread, as a multiple of the rounding error."""
    dtype = ml_dtypes.bfloat16 if problem.bfloat16 else np.float32
    *arrays, bias = arrays
    expected = _exact(problem, arrays, bias)
    magnitudes = _exact(problem, [np.abs(a) for a in arrays], np.abs(bias))
    allowed = _SUM_ROUNDING * magnitudes + 1e-30
    if problem.bfloat16:
        allowed += _BFLOAT16_ROUNDING * np.abs(expected)
    errors: list[float] = []

    def note(result: Any) -> None:
        errors.append(float((np.abs(np.asarray(result, float) - expected) / allowed).max()))

    def attempt() -> None:
        bias32 = bias.astype(np.float32)
        for threads in _SPLIT:
            given = [np.ascontiguousarray(a.astype(dtype)) for a in arrays]
            x, kernel, y = given
            if not library.attempt(problem, x, kernel, y, bias32, threads=threads):
                return
            note(given[problem.place])

    if through_xla:
        operands = [a.astype(dtype) for i, a in enumerate(arrays) if i != problem.place]
        ends = {"bias": bias.astype(np.float32)} if problem.has_bias else {}
        ends |= {"summand": arrays[problem.place].astype(dtype)} if problem.has_sum else {}
        note(jax.jit(partial(call, library, problem))(*operands, **ends))
    attempted = len(errors) + _THREADS * _CALLS
    threads = [threading.Thread(target=attempt) for _ in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(errors) < attempted:  # a call or its thread failed
        return np.inf
    return float(np.max(errors))  # NaN if one of them is


def _keeps_nan(library: Library, problem: Problem, arrays: list[np.ndarray]) -> bool:
    """Whether the features that depend on a NaN of the images are NaN."""
    dtype = ml_dtypes.bfloat16 if problem.bfloat16 else np.float32
    *arrays, bias = arrays
    images = arrays[0].copy()
    _, height, width, _ = images.shape
    images[0, height // 2, width // 2, 0] = np.nan
    expected = _exact(problem, [images, *arrays[1:]], bias)
    for threads in _SPLIT:
        x, kernel, y = (np.ascontiguousarray(a.astype(dtype)) for a in (images, *arrays[1:]))
        done = library.attempt(problem, x, kernel, y, bias.astype(np.float32), threads=threads)
        if not (done and np.isnan(y[np.isnan(expected)]).all()):
            return False
    return True


def _exact(problem: Problem, arrays: list[np.ndarray], bias: np.ndarray) -> np.ndarray:
    """The array to be computed, summed tap by tap in float64."""
    result = _linear(problem, arrays)
    if problem.has_bias:
        result += bias
    if problem.has_sum:
        result += arrays[2]
    return np.maximum(result, 0) if problem.relu else result


def _linear(problem: Problem, arrays: list[np.ndarray]) -> np.ndarray:
    x, kernel, y = arrays
    padded = np.pad(x, ((0, 0), *problem.padding, (0, 0)))
    result = {
        "forward": np.zeros_like(y),
        "input_gradient": np.zeros_like(padded),
        "kernel_gradient": np.zeros_like(kernel),
    }[problem.kind]
    rows, columns = (
        [slice(i * d, i * d + (size - 1) * s + 1, s) for i in range(taps)]
        for taps, d, s, size in zip(
            kernel.shape[:2], problem.dilation, problem.strides, y.shape[1:3], strict=True
        )
    )
    for i, j in np.ndindex(*kernel.shape[:2]):
        at = (slice(None), rows[i], columns[j])
        if problem.kind == "forward":
            result += padded[at] @ kernel[i, j]
        elif problem.kind == "input_gradient":
            result[at] += y @ kernel[i, j].T
        else:
            result[i, j] = np.tensordot(padded[at], y, ((0, 1, 2), (0, 1, 2)))
    if problem.kind != "input_gradient":
        return result
    (above, _), (left, _) = problem.padding
    return result[:, above : above + x.shape[1], left : left + x.shape[2]]


if __name__ == "__main__":
    try:
        outcome = check(Path(sys.argv[1]), seconds=float(sys.argv[2]))
    except (OSError, AttributeError) as error:
        sys.exit(f"{sys.argv[1]} can't be loaded ({error})")
    sys.stdout.write(json.dumps(outcome) + "\n")
