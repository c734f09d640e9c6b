"""Weights and images that NumPy makes from nothing but names, for us and for PyTorch alike."""

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

IMAGES, CLASSES = 4, 10
"""Images in a batch, and logits."""


def _generator(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(zlib.crc32(name.encode())))


def make_images(size: int) -> np.ndarray:
    """Normal images [n, h, w, 3]."""
    return _generator("images").normal(size=(IMAGES, size, size, 3)).astype(np.float32)


def make_cotangent() -> np.ndarray:
    """What the gradient of the logits [n, k] is to be."""
    return _generator("cotangent").normal(size=(IMAGES, CLASSES)).astype(np.float32)


def make_weight(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """The value of one variable, such as "params/layer1_0/conv1/kernel"; nothing is 0 or 1."""
    noise = _generator(path).normal(size=shape)
    kind = path.rsplit("/", 1)[-1]
    if kind == "kernel":
        noise *= np.sqrt(2 / np.prod(shape[:-1]))
    elif kind == "scale":
        noise = 0.6 + 0.1 * noise
    elif kind == "var":
        noise = 1 + 0.3 * np.abs(noise)
    else:
        noise *= 0.1
    return noise.astype(np.float32)


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Path and value of each leaf of nested dictionaries, sorted by name."""
    for name, child in sorted(tree.items()):
        if isinstance(child, dict):
            yield from leaves(child, f"{prefix}{name}/")
        else:
            yield prefix + name, child


def summary_of(
    logits: Any, train_logits: Any, input_gradient: Any, statistics: dict[str, Any]
) -> dict[str, np.ndarray]:
    """What is kept of a run: logits whole, the gradient at 256 places, statistics by their means.

    Args:
        logits: of inference, [n, k].
        train_logits: normalised by the batch, [n, k].
        input_gradient: of the latter with the cotangent, NHWC.
        statistics: running statistics after that batch, by path; biased variances.
    """
    gradient = np.asarray(input_gradient)
    places = _generator("places").choice(gradient.size, 256, replace=False)
    means = [np.asarray(value, np.float64).mean() for _, value in sorted(statistics.items())]
    return {
        "logits": np.asarray(logits),
        "train_logits": np.asarray(train_logits),
        "input_gradient": gradient.reshape(-1)[places],
        "input_gradient_norm": np.linalg.norm(gradient.astype(np.float64)),
        "statistics": np.asarray(means),
    }
