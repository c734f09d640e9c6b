"""resnet-jax export WORKDIR OUT: a network as a program for JAX, ONNX or LiteRT, or weights."""

# ruff: noqa: PLC0415 - JAX takes a second to import, which --help needn't wait for

import argparse
import dataclasses
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from resnet_jax.cli.common.run_flags import RUN_FLAGS, add_run_flags, restore_network
from resnet_jax.cli.common.weights_flags import add_weights_flags, load_network, refuse
from resnet_jax.utils.files import local_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from resnet_jax.data.images.preprocessing import Preprocessing

HELP = "Write a network as a program for JAX, ONNX or LiteRT, or its weights for PyTorch."
EXAMPLE = (
    "resnet-jax export runs/cifar10 cifar10.stablehlo --checkpoint best, or"
    " resnet-jax export --weights resnet50.safetensors --model resnet50 resnet50.stablehlo"
)

_OF_WEIGHTS = ("model", "field", "image_size", "mean", "std")
_OF_PROGRAMS = ("batch", "platforms", "image_size", "mean", "std")
_SUFFIXES = {
    "safetensors": ".safetensors",
    "onnx": ".onnx",
    "tflite": ".tflite",
}  # of formats that need one
_OF_OTHERS = {
    ".ort": "ONNX Runtime",
    **dict.fromkeys((".pt", ".pth", ".pt2", ".ckpt"), "PyTorch"),
    **dict.fromkeys((".pb", ".h5", ".keras"), "TensorFlow"),
    **dict.fromkeys((".npz", ".npy"), "NumPy"),
    **dict.fromkeys((".mlmodel", ".mlpackage"), "Core ML"),
    **dict.fromkeys((".engine", ".plan", ".trt"), "TensorRT"),
}
"""Suffix → the format that a reader would expect."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument("workdir", nargs="?", help="directory of a run")
    parser.add_argument("output", type=local_path, metavar="OUT", help="the file to write")
    parser.add_argument(
        "--format",
        choices=("stablehlo", "onnx", "tflite", "safetensors"),
        default="stablehlo",
        help="a program with its parameters: for JAX, for ONNX Runtime and others (the extra"
        " [onnx]), or for LiteRT (the extra [tflite]); or weights for PyTorch (default: stablehlo)",
    )
    run = parser.add_argument_group("a network of a run")
    add_run_flags(run)
    weights = parser.add_argument_group("a network of a weight file")
    add_weights_flags(weights)
    weights.add_argument(
        "--image-size", type=int, help="height and width (default: the file's, or the paper's)"
    )
    for name, of in (("mean", "0.485,0.456,0.406"), ("std", "0.229,0.224,0.225")):
        weights.add_argument(
            f"--{name}",
            type=_fractions,
            metavar="R,G,B",
            help=f"in 0…1, such as {of}: the program then takes uint8 images and normalises them",
        )
    program = parser.add_argument_group("the program")
    program.add_argument(
        "--batch", type=int, metavar="N", help="images per call (default: any; 1 for tflite)"
    )
    program.add_argument(
        "--platforms",
        type=lambda text: text.split(","),
        metavar="NAMES",
        help="where it can run: some of cpu, cuda, rocm, tpu (default: cpu,cuda,tpu)",
    )


def _fractions(text: str) -> list[float]:
    try:
        values = [float(number) for number in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 <= value <= 1 for value in values):
        raise argparse.ArgumentTypeError(f"{text!r} isn't numbers in 0…1, such as 0.5,0.5")
    return values


@dataclasses.dataclass(frozen=True)
class _Network:
    """The network to export, with `notes` for its description."""

    model: Any  # a linen module
    variables: dict[str, Any]
    image_shape: tuple[int, int, int]
    normalization: dict[str, Any] | None
    notes: dict[str, Any]
    preprocessing: "Callable[[], Preprocessing | None]"  # not every run has a note for weights


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Restore or load the network, and write it."""
    from resnet_jax.inference.export import export_program, write_program
    from resnet_jax.inference.onnx import export_onnx, write_onnx
    from resnet_jax.inference.tflite import tflite_program, write_tflite
    from resnet_jax.weights.save import save_weights

    _check(args)
    network = _from_weights(args) if args.weights else _from_run(args)
    document: dict[str, Any] = {"output": str(args.output), "format": args.format}
    if args.format == "safetensors":
        prepared = network.preprocessing()
        metadata = prepared.metadata() if prepared else {}
        save_weights(args.output, network.model, network.variables, metadata=metadata)
        document |= network.notes | {"says_preprocessing": bool(prepared)}
        return document | {"bytes": args.output.stat().st_size}
    inputs = network.model, network.variables, network.image_shape
    options = {"normalization": network.normalization, "batch_size": args.batch}
    if args.format == "onnx":
        graph = export_onnx(*inputs, **options)
        return document | write_onnx(args.output, graph, notes=network.notes)
    if args.format == "tflite":
        program = tflite_program(*inputs, **options | {"batch_size": args.batch or 1})
        return document | write_tflite(args.output, program, notes=network.notes)
    if args.platforms:
        options["platforms"] = args.platforms
    program = export_program(*inputs, **options)
    return document | write_program(args.output, program, notes=network.notes)


def show(document: dict[str, Any], console: Console) -> None:
    """Print what was written."""
    from resnet_jax.inference.export import READABLE_EARLIER, READABLE_LATER

    output = document["output"]
    first = f"{output}: {document['model']}, {document['bytes']:,} bytes"
    if document["format"] == "safetensors":
        told = "with" if document["says_preprocessing"] else "without a word on"
        lines = [f"{first}, under PyTorch's names, {told} how images are prepared"]
    elif document["format"] == "onnx":
        lines = [
            f"{first}, for ONNX's operators of version {document['opset']}",
            _interface(document),
            "metadata in the file: all of this, for programs to read",
        ]
    elif document["format"] == "tflite":
        lines = [
            f"{first}, for LiteRT",
            _interface(document),
            f"{output}.json: all of this, for programs to read",
        ]
    else:
        lines = [
            f"{first}, for {', '.join(document['platforms'])}",
            _interface(document),
            f"jaxlib {document['versions']['jaxlib']} wrote it; a jaxlib up to {READABLE_LATER}"
            f" newer or {READABLE_EARLIER} older runs it: keep the network, to export it again",
            f"{output}.json: all of this, for programs to read",
        ]
    for line in lines:
        console.print(line)


def _interface(document: dict[str, Any]) -> str:
    """The images that a program takes, and its logits."""
    images, logits = (
        f"{document[name]['dtype']} {name} of {'×'.join(map(str, document[name]['shape']))}"
        for name in ("images", "logits")
    )
    steps = []
    if crop := document.get("crop"):
        covered = "×".join(map(str, crop["cover"]))
        steps = [f"scaled until they cover {covered} ({crop['interpolation']})", "cropped"]
    if document["images"]["dtype"] != "uint8":
        steps.append("normalised")
    prepared = " and ".join((", ".join(steps[:-1]), steps[-1]) if steps[1:] else steps)
    return f"takes {images}, {prepared or 'as in files'}; returns {logits}"


def _check(args: argparse.Namespace) -> None:
    """Refuse inconsistent arguments before JAX is imported."""
    from resnet_jax.errors import UsageError, WriteError

    if bool(args.workdir) == bool(args.weights):
        raise UsageError(
            "give either a run's directory or --weights, and then OUT (resnet-jax export --help)."
        )
    others, why = (RUN_FLAGS, "a run") if args.weights else (_OF_WEIGHTS, "a weight file")
    refuse(args, others, f"is for a network of {why}")
    if args.format == "safetensors":
        refuse(args, _OF_PROGRAMS, "is for programs, not for --format=safetensors")
    if args.format in ("onnx", "tflite"):
        refuse(args, ("platforms",), f"is for --format=stablehlo, not for --format={args.format}")
    for name, suffix in _SUFFIXES.items():
        if (args.output.suffix == suffix) != (args.format == name):
            raise UsageError(
                f"{args.output} and --format={args.format} don't go together: a name in {suffix} is"
                f" for --format={name}, and for it only."
            )
    if owner := _OF_OTHERS.get(args.output.suffix.lower()):
        raise UsageError(
            f"{args.output} is named as a file of {owner}, and a program is StableHLO; name it"
            f" {args.output.with_suffix('.stablehlo')}, or write --format=onnx, from which others"
            " are made (docs/use_pretrained.md, Export a network)."
        )
    if bool(args.mean) != bool(args.std):
        raise UsageError("--mean and --std go together.")
    if args.std and min(args.std) == 0:
        raise UsageError("--std has a 0, by which nothing can be divided.")
    for name in ("batch", "image_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be at least 1.")
    if args.weights and os.path.realpath(args.output) == os.path.realpath(args.weights):
        raise UsageError(f"{args.output} is what is to be exported; choose another OUT.")
    if not args.output.absolute().parent.is_dir():
        raise WriteError(f"{args.output} can't be written: its folder doesn't exist.")


def _from_run(args: argparse.Namespace) -> _Network:
    network = restore_network(args, args.workdir)
    crop = network.image_fit.crop
    return _Network(
        model=network.model,
        variables=network.variables,
        image_shape=network.image_shape,
        normalization=network.normalization,
        notes={
            "model": network.config.model.name,
            "step": network.step,
            "ema": args.ema,
            "class_names": list(network.class_names),
            "crop": dataclasses.asdict(crop) if crop else None,
        },
        preprocessing=network.preprocessing,
    )


def _from_weights(args: argparse.Namespace) -> _Network:
    from resnet_jax.data.images.normalization import given_normalization
    from resnet_jax.errors import DataError
    from resnet_jax.models.presets import find_preset
    from resnet_jax.models.surgery import input_channels
    from resnet_jax.weights.preprocessing import read_preprocessing

    network = load_network(args)
    preprocessing = read_preprocessing(network.path)
    preset = find_preset(network.name)
    height, width, noted = preprocessing.shape if preprocessing else preset.image_shape
    channels = input_channels(network.variables)
    if preprocessing and noted != channels:
        raise DataError(
            f"{network.source} says how images of {noted} channels are prepared, and its network"
            f" takes {channels}."
        )
    image_shape = args.image_size or height, args.image_size or width, channels
    normalization = given_normalization(args.mean or (), args.std or ()) or None
    with open(network.path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return _Network(
        model=network.model,
        variables=network.variables,
        image_shape=image_shape,
        normalization=normalization,
        notes={
            "model": network.name,
            "weights": Path(network.source).name,
            "weights_sha256": digest,
            **(_described(preprocessing, image_shape, normalization) if preprocessing else {}),
        },
        preprocessing=lambda: preprocessing,
    )


def _described(
    preprocessing: "Preprocessing",
    image_shape: tuple[int, int, int],
    normalization: dict[str, Any] | None,
) -> dict[str, Any]:
    """What a file says of its images, as far as it holds for the program.

    A program for images of another size has another crop. A program that normalises images itself
    takes no normalised images.
    """
    crop = preprocessing.crop if preprocessing.resize else None
    is_cropped = crop is not None and image_shape == preprocessing.shape
    names = {
        "class_names": list(preprocessing.class_names) if preprocessing.class_names else None,
        "crop": dataclasses.asdict(crop) if crop and is_cropped else None,
    }
    if normalization:
        return names
    return names | {
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "mean_image": preprocessing.mean_image,
    }
