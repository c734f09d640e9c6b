"""Classifying image files: threads read the files, the network takes batches of one shape."""

import concurrent.futures
import dataclasses
import functools
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from resnet_jax.cli.common.image_progress import image_progress
from resnet_jax.data.images.fit import Fit
from resnet_jax.data.images.image_files import read_file
from resnet_jax.data.readers.folders import SUFFIXES
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.inference.predictor import Predictor

_THREADS = 4


@dataclasses.dataclass(frozen=True)
class Classifier:
    """Classifies image files.

    Attributes:
        predictor: the network.
        class_names: one name per logit, or None.
        remedy: what the message about an image of another size or other colours advises.
    """

    predictor: Predictor
    class_names: Sequence[str] | None
    remedy: str


def read_image(path: Path, fit: Fit, *, remedy: str) -> UInt8[np.ndarray, "h w c"]:
    """The image in a file, of the shape that the network takes.

    Raises:
        DataError: the file can't be read, or the image has another size or other colours, for
            which the message advises the `remedy`.
    """
    try:
        return fit.decode(read_file(path))
    except ConfigError as error:
        raise DataError(f"{path} can't be used: {error}; {remedy}.") from None
    except DataError as error:
        raise DataError(f"{path} can't be read: {error}.") from None


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The given files, and the PNG and JPEG files in the given folders at any depth.

    Raises:
        DataError: a folder has no images, or can't be listed.
    """
    found: list[Path] = []
    for path in paths:
        inside = list(_walk(path)) if os.path.isdir(path) else [path]
        if not inside:
            raise DataError(f"There are no images ({', '.join(SUFFIXES)}) in {path}.")
        found += inside
    return found


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} can't be read: {error.strerror}.") from None

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(place, name)


def classify(classifier: Classifier, paths: Sequence[Path], *, top: int) -> dict[str, Any]:
    """Classify image files.

    Memory holds one image per thread in its original size, and two batches of prepared images.

    Args:
        classifier: the network.
        paths: the image files.
        top: the number of classes to return for each image.

    Returns:
        "predictions", with the most probable classes of each image, and "unreadable", the images
        that can't be read, with the errors.

    Raises:
        NumericalError: the probabilities aren't finite.
    """
    size = classifier.predictor.batch_size(len(paths))
    predictions: list[dict[str, Any]] = []
    unreadable: list[dict[str, str]] = []
    read_one = functools.partial(read_image, fit=classifier.predictor.fit, remedy=classifier.remedy)
    read = _read_ahead(read_one, paths, ahead=2 * size)
    done = 0
    with image_progress(transient=True) as update:
        update(done, len(paths))
        while some := list(itertools.islice(read, size)):
            good = [(path, image) for path, image in some if not isinstance(image, DataError)]
            unreadable += [
                {"image": str(path), "error": str(error)}
                for path, error in some
                if isinstance(error, DataError)
            ]
            if good:
                images = [image for _, image in good]
                values = classifier.predictor(images, batch_size=size)
                for (path, _), row in zip(good, values, strict=True):
                    predictions.append(
                        {"image": str(path), "top": _best(row, classifier.class_names, top)}
                    )
            done += len(some)
            update(done, len(paths))
    return {"predictions": predictions, "unreadable": unreadable}


def _best(
    probabilities: np.ndarray, class_names: Sequence[str] | None, top: int
) -> list[dict[str, Any]]:
    return [
        {
            "class": class_names[i] if class_names else None,
            "index": int(i),
            "probability": float(probabilities[i]),
        }
        for i in probabilities.argsort()[::-1][:top]
    ]


def _read_ahead(
    read: Callable[[Path], np.ndarray], paths: Sequence[Path], *, ahead: int
) -> Iterator[tuple[Path, np.ndarray | DataError]]:
    """The result or DataError of `read` for each path, in order; reads `ahead` files ahead."""

    def attempt(path: Path) -> np.ndarray | DataError:
        try:
            return read(path)
        except DataError as error:
            return error

    threads = min(_THREADS, os.cpu_count() or 1)
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    try:
        rest = iter(paths)
        waiting = deque((p, pool.submit(attempt, p)) for p in itertools.islice(rest, ahead))
        while waiting:
            path, outcome = waiting.popleft()
            yield path, outcome.result()
            waiting += ((p, pool.submit(attempt, p)) for p in itertools.islice(rest, 1))
    finally:
        pool.shutdown(cancel_futures=True)
