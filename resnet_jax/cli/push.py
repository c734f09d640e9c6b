"""resnet-jax push RUN OWNER/NAME: publish the network of a run on the Hugging Face Hub."""

# ruff: noqa: PLC0415 - JAX takes a second to import, which --help needn't wait for

import argparse
from typing import Any

from rich.console import Console

from resnet_jax.cli.common.run_flags import add_run_flags
from resnet_jax.cli.common.tables import Table

HELP = "Publish a run's network on the Hub; without --yes, only show it."
EXAMPLE = "resnet-jax push runs/cifar10 someone/resnet20.cifar10 --checkpoint=best --yes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument("workdir", metavar="RUN", help="directory of a finished run")
    parser.add_argument("repo", metavar="OWNER/NAME", help="name of the model on the Hub")
    add_run_flags(parser)
    parser.add_argument("--yes", action="store_true", help="send it; without, nothing is sent")
    parser.add_argument(
        "--private", action="store_true", help="create a model that its owner alone can see"
    )
    parser.add_argument(
        "--license",
        default="",
        metavar="ID",
        help="licence of the weights by the Hub's name, such as apache-2.0 (default: none given)",
    )
    parser.add_argument("--note", default="", help="what users must know of the training")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Prepare the files in a temporary folder, and send them with --yes."""
    from resnet_jax.inference.push import Choice, prepare_push
    from resnet_jax.utils.files import temporary_folder
    from resnet_jax.weights.hub_upload import upload

    choice = Choice(
        checkpoint=args.checkpoint or "last",
        ema=args.ema,
        seed_index=args.seed_index or 0,
        note=args.note,
        licence=args.license,
    )
    with temporary_folder() as folder:
        card = prepare_push(args.workdir, args.repo, folder, choice)
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        url = None
        if args.yes:
            message = "Publish a network with resnet-jax push"
            url = upload(folder, args.repo, private=args.private, message=message)
    return {"repo": args.repo, "files": files, "card": card, "sent": args.yes, "url": url}


def show(document: dict[str, Any], console: Console) -> None:
    """Print the model card and the files, and whether they were sent."""
    console.print(document["card"])
    table = Table(names=["file"], numbers=["bytes"])
    for name, size in document["files"].items():
        table.add_row(name, f"{size:,}")
    console.print(table)
    if document["sent"]:
        console.print(f"sent: {document['url']}")
        console.print(f'read it by resnet_jax.pretrained("{document["repo"]}")')
    else:
        console.print(f"nothing was sent; with --yes these files go to {document['repo']}")
