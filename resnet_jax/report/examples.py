"""What trained networks get wrong: confusion matrices, and images of confident mistakes."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int, UInt8
from ml_collections import ConfigDict
from PIL import Image

from resnet_jax.checkpoint.workdir import CHECKPOINTS
from resnet_jax.config.io import to_json
from resnet_jax.data.datasets import Dataset
from resnet_jax.data.prepare.cifar import CIFAR
from resnet_jax.data.readers.tfds import find_prepared
from resnet_jax.data.readers.tfds_files import local_data_folder
from resnet_jax.errors import DataError, ResnetJaxError
from resnet_jax.inference.network import TrainedNetwork
from resnet_jax.inference.restore import restore_run
from resnet_jax.report.reading import without_folders
from resnet_jax.research.compare import Line, RecordedRun
from resnet_jax.train.experiment import load_data
from resnet_jax.utils.paths import bucket_errors

_HELD_OUT = ("test", "validation")
_MOST_CLASSES = 40  # of a matrix that is shown whole
_MOST_CONFUSIONS = 40  # pairs of classes that are listed instead
_THUMBNAIL = 112  # pixels of the longer side; smaller images stay as they are


class Examiner:
    """Applies the networks of runs to their held-out images; each data set is read once."""

    def __init__(self, *, mistakes: int) -> None:
        """Read nothing yet.

        Args:
            mistakes: how many mistakes are shown of a line.
        """
        self._mistakes = mistakes
        self._data: dict[str, Dataset] = {}

    def examine(self, line: Line) -> dict[str, Any]:
        """Apply the last checkpoint of every seed to the test split, or else the validation split.

        Returns:
            "split"; the numbers of "networks" and "examples"; "classes", "confusion" and "pairs" as
            from `confusions`, summed over the networks; "mistakes" as from `confident_mistakes`, by
            the mean of the networks' probabilities; "notes", a list of sentences.

        Raises:
            ResnetJaxError: a checkpoint or the data are missing or damaged.
        """
        if missing := [run.folder for run in line.runs if not _has_checkpoints(run.folder)]:
            raise DataError(f"{missing[0]} has no checkpoints here")
        networks = (
            restore_run(run.folder, seed_index=index) for run in line.runs for index in run.numbers
        )
        split = next((of for of in _HELD_OUT if line.runs[0].config[f"data.{of}"]), None)
        if split is None:
            raise DataError("the config names no held-out split")
        total, confusion, count = np.zeros(()), np.zeros((), np.int64), 0
        for network in networks:
            dataset = self._load(network)
            data, names = dataset.splits[split], dataset.class_names
            probabilities = network.predictor(list(data.images))
            predicted = probabilities.argmax(axis=1)
            confusion = confusion + _count(data.labels, predicted, classes=len(names))
            total, count = total + probabilities, count + 1
        mistakes = confident_mistakes(
            total / count, data.images, data.labels, names, most=self._mistakes
        )
        trained_on = {_fingerprint(run) for run in line.runs} - {None}
        return {
            "split": split,
            "networks": count,
            "examples": len(data),
            **confusions(confusion, names),
            "mistakes": mistakes,
            "notes": ["the data here aren't those of the training"]
            if trained_on - {dataset.fingerprint}
            else [],
        }

    def _load(self, network: TrainedNetwork) -> Dataset:
        config = network.config
        key = to_json(ConfigDict({"data": config.data}))
        if key not in self._data:
            _check_prepared(config)
            self._data[key] = load_data(config)
        data = self._data[key]
        if data.class_names != network.class_names:
            raise DataError(f"{config.data.name} has other classes now than in training")
        return data


def _has_checkpoints(folder: epath.Path) -> bool:
    try:
        with bucket_errors(folder):
            return bool((folder / CHECKPOINTS).exists())
    except OSError:
        return False


def _count(
    labels: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"], *, classes: int
) -> Int[np.ndarray, "k k"]:
    """Counts [true class, predicted class]."""
    pairs = np.bincount(labels * classes + predicted, minlength=classes**2)
    return pairs.reshape(classes, classes)


def _fingerprint(run: RecordedRun) -> str | None:
    """The fingerprint of the data that a finished run was trained on."""
    data = (run.summary or {}).get("data")
    fingerprint = data.get("fingerprint") if isinstance(data, dict) else None
    return fingerprint if isinstance(fingerprint, str) else None


def _check_prepared(config: ConfigDict) -> None:
    """Raise DataError for a set that `load_data` would download."""
    name, data_dir = config.data.name, config.data.dir
    if name in CIFAR and find_prepared(name, local_data_folder(name, data_dir)) is None:
        raise DataError(f"{name} isn't prepared on this machine; a run on it prepares it")


def confusions(confusion: Int[np.ndarray, "k k"], names: Sequence[str]) -> dict[str, Any]:
    """The confusion matrix, or of many classes the most frequent confusions.

    Args:
        confusion: counts [true class, predicted class].
        names: one name per class.

    Returns:
        "classes", one name per class, and "confusion", the rows of the matrix, for at most 40
        classes, else empty; "pairs", the most frequent confusions as [true, predicted, count].
    """
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_CONFUSIONS]
    places = zip(*np.unravel_index(order, wrong.shape), strict=True)
    whole = len(names) <= _MOST_CLASSES
    return {
        "classes": list(names) if whole else [],
        "confusion": confusion.tolist() if whole else [],
        "pairs": [[names[t], names[p], int(wrong[t, p])] for t, p in places if wrong[t, p]],
    }


def confident_mistakes(
    probabilities: Float[np.ndarray, "n k"],
    images: UInt8[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    names: Sequence[str],
    *,
    most: int,
) -> list[dict[str, Any]]:
    """The examples that are classified wrongly with the highest probability, highest first.

    Args:
        probabilities: of the classes; with several networks their mean.
        images, labels: the examples.
        names: one name per class.
        most: how many examples.

    Returns:
        For each "index" in the split, the names "true" and "predicted", their probabilities
        "of_true" and "of_predicted", and "image", "width" and "height", as from `thumbnail`.
    """
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    confidence = probabilities[wrong, predicted[wrong]]
    chosen = wrong[np.argsort(-confidence, kind="stable")[:most]]
    return [
        {
            "index": int(index),
            "true": names[labels[index]],
            "predicted": names[predicted[index]],
            "of_true": round(float(probabilities[index, labels[index]]), 4),
            "of_predicted": round(float(probabilities[index, predicted[index]]), 4),
            **thumbnail(images[index]),
        }
        for index in chosen
    ]


def thumbnail(image: UInt8[np.ndarray, "h w c"]) -> dict[str, Any]:
    """A small picture: "image", a data URI, and "width" and "height" in pixels.

    Images of at most 112 pixels are PNG, pixel for pixel; larger ones are scaled to JPEG. Of images
    with neither one nor three channels, the first channel is shown.
    """
    picture = Image.fromarray(image if image.shape[-1] == 3 else image[..., 0])
    file = io.BytesIO()
    if max(picture.size) > _THUMBNAIL:
        kind = "jpeg"
        picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
        picture.save(file, kind, quality=82)
    else:
        kind = "png"
        picture.save(file, kind, optimize=True)
    encoded = base64.b64encode(file.getvalue()).decode("ascii")
    width, height = picture.size
    return {"image": f"data:image/{kind};base64,{encoded}", "width": width, "height": height}


def examine_best(
    lines: Sequence[Line], errors: Sequence[float], *, mistakes: int, most: int
) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """Examine the lines with the lowest errors.

    Args:
        lines: the lines.
        errors: of the lines; infinity for lines without a score.
        mistakes: how many mistakes are shown of a line.
        most: how many lines are examined.

    Returns:
        Number of the line → its examination, and a note for each line that can't be examined.
    """
    examiner = Examiner(mistakes=mistakes)
    found: dict[int, dict[str, Any]] = {}
    notes: dict[str, None] = {}
    order = sorted(range(len(lines)), key=lambda number: errors[number])[:most]
    for number in sorted(order):
        line = lines[number]
        try:
            found[number] = examiner.examine(line)
        except ResnetJaxError as error:
            private = [str(run.folder) for run in line.runs]
            private += [str(run.config["data.dir"] or "") for run in line.runs]
            reason = without_folders(str(error), *private).rstrip(".")
            notes[f"{line.label}: no confusion matrix and no mistakes, because {reason}"] = None
        else:
            notes |= dict.fromkeys(f"{line.label}: {note}" for note in found[number].pop("notes"))
    return found, list(notes)
