"""resnet-jax eval WORKDIR: evaluate a checkpoint of a run, or a weight file, on a split."""

# ruff: noqa: PLC0415 - JAX takes a second to import, which --help needn't wait for

import argparse
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console

from resnet_jax.cli.common.pictures import check_picture
from resnet_jax.cli.common.preprocessing_flags import (
    PREPROCESSING_FLAGS,
    add_preprocessing_flags,
    describe_preprocessing,
    preprocessing_of,
    resize_value,
)
from resnet_jax.cli.common.run_flags import RUN_FLAGS, add_run_flags, restore_network
from resnet_jax.cli.common.tables import Table
from resnet_jax.cli.common.weights_flags import add_weights_flags, load_network, refuse
from resnet_jax.errors import DataError, NumericalError, UsageError
from resnet_jax.utils.files import local_path

if TYPE_CHECKING:
    import numpy as np

    from resnet_jax.data.datasets import Dataset
    from resnet_jax.train.evaluate import Evaluation

_OF_WEIGHTS = ("model", "field", "data", "resize", *PREPROCESSING_FLAGS)
_ROLES = ("train", "validation", "test")
_BATCH = 1000  # images
_BATCH_PIXELS = 2**24  # limits the batch of large images

HELP = "Score a checkpoint of a run or a weight file: top-1, top-5, loss, on request each class."
EXAMPLE = (
    "resnet-jax eval runs/digits --checkpoint best --per-class --confusion confusion.png, or"
    " resnet-jax eval --weights timm/resnet50.a1_in1k --model resnet50 --data imagenet2012"
    " --split validation"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument("workdir", nargs="?", help="directory of a run")
    parser.add_argument(
        "--split",
        default="test",
        help="of a run train, validation or test; with --weights a split of the data set, or a part"
        " such as test[:100] (default: test)",
    )
    parser.add_argument(
        "--mirrored", action="store_true", help="average the logits of images and mirror images"
    )
    parser.add_argument("--per-class", action="store_true", help="add a table of the classes")
    parser.add_argument(
        "--confusion", type=local_path, metavar="FILE", help="draw the confusion matrix"
    )
    parser.add_argument("--data-dir", help="folder of the prepared data, or of images by class")
    run = parser.add_argument_group("a network of a run")
    add_run_flags(run, default="the mean of all")
    weights = parser.add_argument_group(
        "a network of a weight file",
        "The preprocessing of images is read from the file or beside it, or given by flags.",
    )
    add_weights_flags(weights)
    weights.add_argument("--data", metavar="NAME", help="a data set of TFDS, or folder")
    weights.add_argument(
        "--resize",
        type=resize_value,
        metavar="N",
        help="pixels of the shorter side before the crop, or none",
    )
    add_preprocessing_flags(weights)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Restore or load the network, evaluate it, and draw the confusion matrix on request."""
    if bool(args.workdir) == bool(args.weights):
        raise UsageError("give either a run's directory or --weights (resnet-jax eval --help).")
    others, why = (RUN_FLAGS, "a run") if args.weights else (_OF_WEIGHTS, "a weight file")
    refuse(args, others, f"is for a network of {why}")
    if args.confusion:
        check_picture("--confusion", args.confusion)
    document, scores, class_names = _of_weights(args) if args.weights else _of_run(args)
    _check_finite(scores.metrics, args.split)
    document |= {"mirrored": args.mirrored, **scores.scalars()}
    assert scores.confusion is not None
    if args.per_class:
        document["classes"] = _per_class(scores.confusion, class_names)
    if args.confusion:
        from resnet_jax.logging.plots import draw_confusion

        draw_confusion(args.confusion, scores.confusion, class_names)
        document["confusion"] = str(args.confusion)
    return document


def _check_finite(metrics: Mapping[str, float], split: str) -> None:
    if not math.isfinite(metrics["loss"]):
        raise NumericalError(
            f"The network's logits aren't finite on {split}; with --weights, its fields or the"
            " normalisation of the images may be others than its publisher's."
        )
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise NumericalError(f"The metric {name} isn't finite on {split}.")


def _of_run(args: argparse.Namespace) -> tuple[dict[str, Any], "Evaluation", tuple[str, ...]]:
    """The network of a run: its part of the document, its scores, its class names."""
    from resnet_jax.checkpoint.run_config import config_of
    from resnet_jax.inference.restore import seeds_of
    from resnet_jax.train.checks import fix_threads
    from resnet_jax.train.evaluate import mean_over_seeds

    if args.split not in _ROLES:
        raise UsageError(f"--split is {args.split!r}; of a run it can be {', '.join(_ROLES)}.")
    seeds = seeds_of(args.workdir)
    fix_threads(config_of(args.workdir))  # restoring starts JAX
    indices = range(len(seeds)) if args.seed_index is None else [args.seed_index]
    networks = [restore_network(args, args.workdir, seed_index=index) for index in indices]
    run = networks[0]
    document = {
        "workdir": args.workdir,
        "step": run.step,
        "split": args.split,
        "weights": "ema" if args.ema else "raw",
    }
    how = {"data_dir": args.data_dir, "mirrored": args.mirrored}
    scores = [network.evaluate(args.split, **how) for network in networks]
    if len(scores) == 1:
        return document, scores[0], run.class_names
    return document | {"of_seeds": list(seeds)}, mean_over_seeds(scores), run.class_names


def _of_weights(args: argparse.Namespace) -> tuple[dict[str, Any], "Evaluation", tuple[str, ...]]:
    """The network of a weight file; returns as `_of_run`."""
    from resnet_jax.data.datasets import load_dataset
    from resnet_jax.data.images.fit import Fit
    from resnet_jax.inference.predictor import Predictor
    from resnet_jax.models.surgery import input_channels

    if not args.data:
        raise UsageError("--data is missing: the data set to score the network on, or folder.")
    network = load_network(args)
    model = network.model
    preprocessing = preprocessing_of(
        args,
        network.path,
        num_classes=model.num_classes,
        channels=input_channels(network.variables),
        defaults=_as_they_come(args.data, network.name),
    )
    dataset = load_dataset(
        args.data,
        splits={"scored": args.split},
        data_dir=args.data_dir,
        crop=preprocessing.crop,
        channels=preprocessing.shape[-1],
    )
    if dataset.image_shape != preprocessing.shape:
        found, wanted = (
            "×".join(map(str, shape)) for shape in (dataset.image_shape, preprocessing.shape)
        )
        raise DataError(
            f"images of {args.data} are {found} (height×width×channels), but the network of"
            f" {args.weights} takes {wanted}."
        )
    _check_classes(args, model.num_classes, preprocessing.class_names, dataset)
    fit = Fit(preprocessing.shape, preprocessing.crop)
    predictor = Predictor(model, network.variables, preprocessing.normalization, fit)
    scores = predictor.evaluate(
        dataset.splits["scored"],
        batch_size=max(1, min(_BATCH, _BATCH_PIXELS // preprocessing.size**2)),
        mirrored=args.mirrored,
    )
    document = {
        "weights": network.source,
        "model": network.name,
        "data": args.data,
        "split": args.split,
        "preprocessing": describe_preprocessing(preprocessing),
    }
    return document, scores, dataset.class_names


def _as_they_come(data: str, preset: str) -> dict[str, Any]:
    """Fields of `Preprocessing` for a data set whose images have the network's size."""
    from resnet_jax.data.dataset_info import find_known
    from resnet_jax.models.presets import find_preset

    known = find_known(data)
    if known is None or not known.one_size or known.image_shape != find_preset(preset).image_shape:
        return {}
    return {"size": known.image_shape[0], "resize": None, "interpolation": "bilinear"}


def _check_classes(
    args: argparse.Namespace,
    num_classes: int,
    names: tuple[str, ...] | None,
    dataset: "Dataset",
) -> None:
    """Refuse a network whose classes can't be the classes of the data.

    The spelling of names may differ. The same names in another order, as in some tables of
    ImageNet, would give a good network the scores of chance.
    """
    if dataset.num_classes != num_classes:
        raise DataError(
            f"{args.data} has {dataset.num_classes} classes, but the network of {args.weights} has"
            f" {num_classes}."
        )
    if names and names != dataset.class_names and set(names) == set(dataset.class_names):
        first = next(i for i, name in enumerate(names) if name != dataset.class_names[i])
        raise DataError(
            f"{args.data} has the classes of {args.weights} in another order: number {first} is"
            f" {dataset.class_names[first]!r} there and {names[first]!r} here."
        )


def _per_class(confusion: "np.ndarray", class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Counts, recall and precision of each class; None where the denominator is 0."""
    rows = []
    for i, name in enumerate(class_names):
        examples, predicted, correct = confusion[i].sum(), confusion[:, i].sum(), confusion[i, i]
        rows.append(
            {
                "class": name,
                "examples": int(examples),
                "correct": int(correct),
                "recall": float(correct / examples) if examples else None,
                "precision": float(correct / predicted) if predicted else None,
            }
        )
    return rows


def show(document: dict[str, Any], console: Console) -> None:
    """Print the scores and the table of classes."""
    if "classes" in document:
        table = Table("class", numbers=("examples", "correct", "recall", "precision"))
        for row in document["classes"]:
            shares = ["–" if row[k] is None else f"{row[k]:.1%}" for k in ("recall", "precision")]
            table.add_row(row["class"], str(row["examples"]), str(row["correct"]), *shares)
        console.print(table)
    what = document["split"]
    if "workdir" in document:
        ema = ", moving averages" if document["weights"] == "ema" else ""
        what += f", step {document['step']:,}{ema}"
        if "of_seeds" in document:
            what += f", mean of seeds {', '.join(map(str, document['of_seeds']))}"
    else:
        what = f"{document['weights']} on {document['data']}, {what}"
    if document["mirrored"]:
        what += ", mirrored too"
    spread = f" ± {document['std']['top1']:.2%}" if "std" in document else ""
    console.print(
        f"{what}: top-1 {document['top1']:.2%}{spread}  top-5 {document['top5']:.2%}"
        f"  loss {document['loss']:.4f}  ({document['examples']:,} images)"
    )
    if "confusion" in document:
        console.print(f"confusion matrix: {document['confusion']}")
