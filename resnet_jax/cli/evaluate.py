"""resnet-jax eval WORKDIR: score a checkpoint of a run on a split."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from resnet_jax.errors import UsageError, WriteError

if TYPE_CHECKING:
    import numpy as np

_PICTURES = (".png", ".pdf", ".svg")
HELP = "Score a checkpoint of a run: top-1, top-5, loss, and on request each class."
EXAMPLE = "resnet-jax eval runs/digits --checkpoint best --per-class --confusion confusion.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument("workdir", help="directory of the run")
    parser.add_argument(
        "--split", default="test", choices=["train", "validation", "test"], help="default: test"
    )
    parser.add_argument(
        "--checkpoint", default="last", help="last, best (on validation), or a step (default: last)"
    )
    parser.add_argument("--ema", action="store_true", help="score the moving averages")
    parser.add_argument("--per-class", action="store_true", help="add a table of the classes")
    parser.add_argument("--confusion", type=Path, metavar="FILE", help="draw the confusion matrix")
    parser.add_argument("--data-dir", help="where the prepared data lie, if not where they did")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Restore, score, and draw what was asked for."""
    from resnet_jax.train.restore import restore_run  # noqa: PLC0415 - imports JAX

    if args.confusion and not args.confusion.parent.is_dir():
        raise WriteError(f"--confusion: there is no folder {args.confusion.parent}.")
    if args.confusion and args.confusion.suffix not in _PICTURES:
        raise UsageError(f"--confusion {args.confusion} must end in {', '.join(_PICTURES)}.")
    run = restore_run(args.workdir, checkpoint=args.checkpoint, ema=args.ema)
    scores = run.evaluate(args.split, data_dir=args.data_dir)
    document: dict[str, Any] = {
        "workdir": args.workdir,
        "step": run.step,
        "split": args.split,
        "weights": "ema" if args.ema else "raw",
        **scores.scalars(),
    }
    if args.per_class:
        document["classes"] = _per_class(scores.confusion, run.class_names)
    if args.confusion:
        from resnet_jax.train.report import draw_confusion  # noqa: PLC0415 - imports matplotlib

        draw_confusion(args.confusion, scores.confusion, run.class_names)
        document["confusion"] = str(args.confusion)
    return document


def _per_class(confusion: "np.ndarray", class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Counts, recall and precision of each class; None where there is nothing to divide by."""
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
        table = Table("class")
        for heading in ("examples", "correct", "recall", "precision"):
            table.add_column(heading, justify="right")
        for row in document["classes"]:
            shares = ["–" if row[k] is None else f"{row[k]:.1%}" for k in ("recall", "precision")]
            table.add_row(row["class"], str(row["examples"]), str(row["correct"]), *shares)
        console.print(table)
    ema = ", moving averages" if document["weights"] == "ema" else ""
    console.print(
        f"{document['split']}, step {document['step']:,}{ema}: top-1 {document['top1']:.2%}"
        f"  top-5 {document['top5']:.2%}  loss {document['loss']:.4f}"
        f"  ({document['examples']:,} images)"
    )
    if "confusion" in document:
        console.print(f"confusion matrix: {document['confusion']}")
