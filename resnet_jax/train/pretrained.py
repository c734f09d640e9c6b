"""Pretrained initial weights of a run: `config.init_from`."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
from etils import epath
from flax import traverse_util

from resnet_jax.checkpoint.workdir import read_config
from resnet_jax.config.io import from_json
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.models.presets import init_variables, preset_of
from resnet_jax.models.resnet import ResNet
from resnet_jax.weights.hub import local_file
from resnet_jax.weights.load import load_weights, read_model
from resnet_jax.weights.preprocessing import read_preprocessing

_CHUNK = 2**20  # bytes
_SHOWN = 16  # digits of a digest, in a message


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """The part of a weight file that a run uses.

    Attributes:
        path, sha256: path and SHA-256 of the file.
        variables: {"params", "batch_stats"}; without the classifier if the run has a new one.
        mean, std: mean and standard deviation per channel, in 0…1, that the network was trained
            with; () if the file doesn't say, or if the run subtracts a mean image.
        mean_image: whether the network was trained with a mean image, whose means per channel are
            `mean`.
    """

    path: str
    sha256: str
    variables: dict[str, Any]
    mean: Sequence[float]
    std: Sequence[float]
    mean_image: bool

    def record(self) -> dict[str, str]:
        """Return what checkpoints and summary.json record of the weights."""
        return {"file": os.path.basename(self.path), "sha256": self.sha256}

    def announce(self, config: ml_collections.ConfigDict, num_classes: int) -> str:
        """Return a line that says what the run begins with."""
        head = f"a new classifier of {num_classes} classes" if config.new_head else "its classifier"
        if config.data.mean:
            normalised = "as data.mean and data.std say"
        elif config.data.normalize == "pixel_mean":
            normalised = "by their own mean image and deviation"
        elif len(self.mean):
            normalised = (
                "by the channels' means of its mean image" if self.mean_image else "as it says"
            )
        else:
            normalised = "by their own mean and deviation, as it names none"
        return (
            f"begins with {self.path} (SHA-256 {self.sha256[:_SHOWN]}…) and {head}; images are"
            f" normalised {normalised}"
        )


def name_model(config: ml_collections.ConfigDict, workdir: epath.Path) -> ml_collections.ConfigDict:
    """Return the config with the network of `init_from`'s file, if `model.name` is "".

    When a run is resumed without the file, the network is that of the config in `workdir`.

    Args:
        config: the run's configuration; fields of `model` that are set keep their values.
        workdir: directory of the run.

    Raises:
        ConfigError: `init_from` is empty, too.
        DataError: the file doesn't name its network, or can't be read.
    """
    if config.model.name:
        return config
    if not config.init_from:
        raise ConfigError(
            "model.name is empty; name a preset, or let init_from name a file of save_weights,"
            " whose network the run then has."
        )
    try:
        name, fields = preset_of(read_model(config.init_from))
        fields |= {"name": name}
    except DataError as error:
        try:
            fields = dict(from_json(read_config(workdir)).model)
        except ConfigError:  # there is no run in `workdir`
            raise error from None
    named = config.copy_and_resolve_references()
    for field, value in fields.items():
        if field == "name" or (field in named.model and named.model[field] is None):
            named.model[field] = value
    return named


def read_pretrained(
    config: ml_collections.ConfigDict,
    model: ResNet,
    *,
    image_shape: tuple[int, int, int],
    class_names: Sequence[str],
) -> Pretrained:
    """Read the weight file `config.init_from`.

    Args:
        config: the run's configuration. With `new_head` the file's classifier is left out.
        model: the network, whose classifier has the classes of the data.
        image_shape: (h, w, c) of the data's images.
        class_names: class names of the data.

    Raises:
        ConfigError: normalisation or classes of the file differ from the config's.
        DataError: the file can't be read, or doesn't fit the model.
    """
    path = local_file(config.init_from)
    variables = _load(path, model, new_head=config.new_head)
    check_shapes(path, variables, model, image_shape)
    notes = read_preprocessing(path)
    mean, std = (notes.mean, notes.std) if notes else ((), ())
    mean_image = bool(notes and notes.mean_image)
    if mean_image and config.data.normalize == "pixel_mean":
        mean, std = (), ()  # the run subtracts the mean image of its own data
    if mean and config.data.normalize != "channel":
        raise ConfigError(
            f"data.normalize is {config.data.normalize!r}, but {path} names the mean and deviation"
            " that its network was trained with; take them with 'channel'."
        )
    theirs = tuple(notes.class_names or ()) if notes else ()
    if theirs and not config.new_head and theirs != tuple(class_names):
        raise ConfigError(
            f"the classes of {path} aren't the data's ({_first_difference(theirs, class_names)});"
            " set new_head=True to begin with a new classifier."
        )
    return Pretrained(path, file_sha256(path), variables, mean, std, mean_image)


def file_sha256(path: str) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Raises:
        DataError: the file can't be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}.") from None
    return digest.hexdigest()


def check_unchanged(path: str, began_with: Mapping[str, str] | None) -> None:
    """Check that a weight file, if it still exists, is the file that a run began with.

    The run doesn't need the file any more, but the same config with another file is another run.

    Args:
        path: path of the file; "" if the run began with random weights.
        began_with: `Pretrained.record` of the file that the run began with.

    Raises:
        ConfigError: the file has changed.
    """
    if not path or not began_with or not os.path.isfile(path):
        return
    if (found := file_sha256(path)) != began_with["sha256"]:
        raise ConfigError(
            f"{path} isn't the file that the run began with (SHA-256 {found[:_SHOWN]}…, was"
            f" {began_with['sha256'][:_SHOWN]}…). Nothing was touched; put the old one back or move"
            " this one away to go on, or choose another --workdir to begin anew."
        )


def _load(path: str, model: ResNet, *, new_head: bool) -> dict[str, Any]:
    body = model.copy(num_classes=0)
    if new_head:
        return load_weights(body, path)
    try:
        return load_weights(model, path)
    except DataError as error:
        try:
            load_weights(body, path)
        except DataError:
            raise error from None
    raise DataError(
        f"the classifier of {path} isn't one of {model.num_classes} classes, as the data have; set"
        " new_head=True to begin with a new one."
    )


def check_shapes(
    path: str, variables: Any, model: ResNet, image_shape: tuple[int, int, int]
) -> None:
    """Compare the variables of a file with the variables of the model for images of a shape.

    Variables of the model that the file lacks, such as a new classifier, aren't an error.

    Raises:
        DataError: the file has variables that the model lacks, or variables of other shapes.
    """
    drawn = jax.eval_shape(lambda key: init_variables(model, key, image_shape), jax.random.key(0))
    wanted, found = (traverse_util.flatten_dict(tree, sep="/") for tree in (drawn, variables))
    for name, leaf in found.items():
        if name not in wanted or leaf.shape != wanted[name].shape:
            shape = wanted[name].shape if name in wanted else "nothing"
            raise DataError(
                f"{path} doesn't fit the model on {'×'.join(map(str, image_shape))} images: {name}"
                f" is {leaf.shape} in the file, {shape} in the model."
            )


def _first_difference(theirs: Sequence[str], ours: Sequence[str]) -> str:
    if len(theirs) != len(ours):
        return f"{len(theirs)} and {len(ours)}"
    one, other = next(pair for pair in zip(theirs, ours, strict=True) if pair[0] != pair[1])
    return f"{one!r} and {other!r}"
