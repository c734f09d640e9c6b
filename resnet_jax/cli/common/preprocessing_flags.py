"""Flags for the preprocessing of images, for weight files without a note of it."""

# ruff: noqa: PLC0415 - JAX takes a second to import, which --help needn't wait for

import argparse
import dataclasses
import types
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_jax.data.dataset_info import IMAGENET_MEAN, IMAGENET_STD
from resnet_jax.utils.files import local_path

if TYPE_CHECKING:
    from resnet_jax.data.images.preprocessing import Preprocessing

PREPROCESSING_FLAGS = ("mean", "std", "size", "interpolation", "classes")
"""The flags of `add_preprocessing_flags`, as names of fields of the parsed arguments."""

_NEEDED = ("mean", "std", "size", "resize", "interpolation")
ALONE = "alone"
"""The value of --resize without a number, which is valid for runs only."""

_MAX_BYTES = 2**24  # the names of 21,841 classes take 2 MB


def add_preprocessing_flags(group: argparse._ArgumentGroup) -> None:
    """Define the flags except --resize, which subcommands define with the type `resize_value`."""
    for name, of in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
        often = ",".join(map(str, of))
        group.add_argument(
            f"--{name}", type=_numbers, metavar="R,G,B", help=f"in 0…1; for ImageNet {often}"
        )
    group.add_argument("--size", type=int, metavar="N", help="side of the crop, in pixels")
    group.add_argument(
        "--interpolation", choices=("bilinear", "bicubic"), help="interpolation of scaling"
    )
    group.add_argument(
        "--classes",
        type=local_path,
        metavar="FILE",
        help="text file with the names of the classes, one per line",
    )


def resize_value(text: str) -> int | str:
    """Parse --resize: a number of pixels, "none" or `ALONE`."""
    if text in ("none", ALONE):
        return text
    try:
        return int(text)
    except ValueError:
        message = f"{text!r} isn't a number of pixels; without one, put --resize last"
        raise argparse.ArgumentTypeError(message) from None


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} isn't numbers, such as 0.5,0.5,0.5") from None


def preprocessing_of(
    args: argparse.Namespace,
    path: str,
    *,
    num_classes: int,
    channels: int,
    defaults: Mapping[str, Any] = types.MappingProxyType({}),
) -> "Preprocessing":
    """The preprocessing that the flags describe, completed by the note in or beside the file.

    Args:
        args: the parsed flags.
        path: the path of the weight file on this machine.
        num_classes: the number of classes of the network.
        channels: of the images that the network takes.
        defaults: fields to use if neither the flags nor the file has them.

    Raises:
        UsageError: a needed field is unknown, or a value is invalid.
        DataError: the note in the file, or the file of --classes, can't be used.
        ConfigError: the number of class names isn't `num_classes`, or that of the mean `channels`.
    """
    from resnet_jax.data.images.preprocessing import Preprocessing
    from resnet_jax.errors import ConfigError, DataError, UsageError
    from resnet_jax.weights.preprocessing import read_preprocessing

    given: dict[str, Any] = {
        name: getattr(args, name) for name in _NEEDED if getattr(args, name) is not None
    }
    if given.get("resize") == ALONE:
        raise UsageError("--resize needs a number of pixels with --weights, or none.")
    if given.get("resize") == "none":  # by whatever interpolation
        given = {"interpolation": "bilinear"} | given | {"resize": None}
    missing = [f"--{name}" for name in _NEEDED if name not in given]
    if args.classes:
        given["class_names"] = _read_names(args.classes)
    known: dict[str, Any] = {}
    if missing or not args.classes:
        try:
            found = read_preprocessing(path)
        except DataError as error:
            flags = ", ".join(f"--{name}" for name in (*_NEEDED, "classes"))
            raise DataError(f"{error} If all of {flags} are given, it isn't looked at.") from None
        known = dict(vars(found)) if found else dict(defaults)
        missing = [flag for flag in missing if flag.removeprefix("--") not in known]
    if "mean" in given or "std" in given:
        known.pop("mean_image", None)
    if missing:
        raise UsageError(
            f"neither {args.weights} nor a file beside it says how images are prepared for its"
            f" network; give {', '.join(missing)}, as its publisher has them."
        )
    try:
        preprocessing = Preprocessing(**known | given)
    except ConfigError as error:
        raise UsageError(f"{error}.") from None
    names = preprocessing.class_names
    if names and len(names) != num_classes:
        source = f"--classes {args.classes}" if args.classes else f"the note of {args.weights}"
        raise ConfigError(
            f"The model has {num_classes} classes, but {source} has {len(names)} names."
        )
    if preprocessing.shape[-1] != channels:
        raise ConfigError(
            f"The network of {args.weights} takes images of {channels} channels, but the mean and"
            f" deviation for them are of {preprocessing.shape[-1]}."
        )
    return preprocessing


def describe_preprocessing(preprocessing: "Preprocessing") -> dict[str, Any]:
    """The fields of a preprocessing for a JSON document, without the class names.

    With a mean image, "mean" has the means of its channels, and "mean_image" is true.
    """
    fields = dataclasses.asdict(preprocessing)
    del fields["class_names"]
    if fields.pop("mean_image") is not None:
        fields["mean_image"] = True
    return fields


def _read_names(path: Path) -> tuple[str, ...]:
    from resnet_jax.errors import DataError

    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
        lines = text.decode("utf-8-sig").rstrip().split("\n")
    except OSError as error:
        raise DataError(f"--classes {path} can't be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise DataError(f"--classes {path} isn't text in UTF-8.") from None
    if len(text) > _MAX_BYTES:
        raise DataError(f"--classes {path} has more than {_MAX_BYTES // 2**20} MiB.")
    names = tuple(line.strip() for line in lines)
    if "" in names:
        raise DataError(f"--classes {path}: line {names.index('') + 1} is empty.")
    return names
