"""resnet-jax predict WORKDIR IMAGE…: classify image files with a checkpoint or a weight file."""

# ruff: noqa: PLC0415 - JAX and Pillow take a second to import, which --help needn't wait for

import argparse
import sys
from typing import TYPE_CHECKING, Any, TextIO, cast

from rich.console import Console

from resnet_jax.cli.common.preprocessing_flags import (
    ALONE,
    PREPROCESSING_FLAGS,
    add_preprocessing_flags,
    describe_preprocessing,
    preprocessing_of,
    resize_value,
)
from resnet_jax.cli.common.run_flags import RUN_FLAGS, add_run_flags, restore_network
from resnet_jax.cli.common.weights_flags import add_weights_flags, load_network, refuse
from resnet_jax.utils.console import plain_console
from resnet_jax.utils.files import local_path
from resnet_jax.utils.streams import LossyStream

if TYPE_CHECKING:
    from resnet_jax.cli.classify import Classifier

HELP = "Classify image files with a checkpoint of a run, or with a weight file."
EXAMPLE = (
    "resnet-jax predict runs/cifar10 cat.png frog.jpg --resize, or"
    " resnet-jax predict --weights mine.safetensors photos/"
)

_OF_WEIGHTS = ("model", "field", *PREPROCESSING_FLAGS)
_LINE = 5000  # characters; a path has up to 4,096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="the run's directory, unless --weights is given; then PNG or JPEG files, or folders",
    )
    parser.add_argument("--top", type=int, default=5, help="classes to show (default: 5)")
    parser.add_argument(
        "--resize",
        nargs="?",
        const=ALONE,
        type=resize_value,
        metavar="N",
        help="with a run that took images as they are, without N and last: scale, crop the centre"
        " and convert colours where an image doesn't fit; other runs prepare images as in training"
        " without it; with --weights: pixels of the shorter side before the crop, or none",
    )
    run = parser.add_argument_group("a network of a run")
    add_run_flags(run)
    weights = parser.add_argument_group(
        "a network of a weight file",
        "The preprocessing of images is read from the file or beside it, or given by flags.",
    )
    add_weights_flags(weights)
    add_preprocessing_flags(weights)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Restore or load a network, and classify; unreadable images are skipped and reported."""
    from resnet_jax.cli.classify import classify, find_images
    from resnet_jax.errors import DataError, UsageError

    if args.top < 1:
        raise UsageError(f"--top is {args.top}; it must be at least 1.")
    if args.weights:
        refuse(args, RUN_FLAGS, "is for a network of a run")
        images = find_images([*map(local_path, args.paths)])
        classifier, document = _of_weights(args)
    else:
        refuse(args, _OF_WEIGHTS, "is for a network of a weight file")
        if len(args.paths) < 2:
            raise UsageError("give a run's directory and images, or --weights and images.")
        images = find_images([*map(local_path, args.paths[1:])])
        classifier, document = _of_run(args)
    document |= classify(classifier, images, top=args.top)
    if document["unreadable"]:
        document["exit_code"] = DataError.exit_code
    return document


def show(document: dict[str, Any], console: Console) -> None:
    """Print one line per image, the most probable class first; unreadable images on stderr."""
    from resnet_jax.weights.arrays import printable

    for prediction in document["predictions"]:
        classes = ", ".join(
            f"{top['index'] if top['class'] is None else top['class']} {top['probability']:.1%}"
            for top in prediction["top"]
        )
        console.print(f"{printable(prediction['image'], longest=_LINE)}: {classes}")
    errors = plain_console(cast(TextIO, LossyStream(sys.stderr)))
    for image in document["unreadable"]:
        errors.print(f"error: {printable(image['error'], longest=_LINE)}")


def _of_run(args: argparse.Namespace) -> tuple["Classifier", dict[str, Any]]:
    """The network of a run, and its part of the document."""
    from resnet_jax.cli.classify import Classifier
    from resnet_jax.data.images.fit import Fit
    from resnet_jax.data.images.preprocessing import ScaleAndCrop
    from resnet_jax.errors import UsageError

    if args.resize not in (None, ALONE):
        raise UsageError(f"--resize {args.resize}: a run knows the size; put --resize last, alone.")
    workdir = args.paths[0]
    network = restore_network(args, workdir)
    predictor, size = network.predictor, network.image_shape[:2]
    if args.resize and not predictor.fit.crop:
        predictor = predictor.with_fit(Fit(network.image_shape, ScaleAndCrop(size, size)))
    classifier = Classifier(predictor, network.class_names, remedy="--resize makes images fit")
    return classifier, {"workdir": workdir, "step": network.step}


def _of_weights(args: argparse.Namespace) -> tuple["Classifier", dict[str, Any]]:
    """The network of a weight file, and its part of the document."""
    from resnet_jax.cli.classify import Classifier
    from resnet_jax.inference.pretrained import PretrainedNetwork
    from resnet_jax.models.surgery import input_channels

    network = load_network(args)
    preprocessing = preprocessing_of(
        args,
        network.path,
        num_classes=network.model.num_classes,
        channels=input_channels(network.variables),
    )
    pretrained = PretrainedNetwork(network.source, network.model, network.variables, preprocessing)
    classifier = Classifier(
        pretrained.predictor,
        preprocessing.class_names,
        remedy=f"--resize {preprocessing.size} makes images fit",
    )
    return classifier, {
        "weights": network.source,
        "model": network.name,
        "preprocessing": describe_preprocessing(preprocessing),
    }
