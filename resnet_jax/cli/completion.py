"""resnet-jax completion SHELL: the script by which a shell completes the commands."""

import argparse
from typing import Any

from rich.console import Console

HELP = "Print the script by which bash, zsh or fish completes subcommands, flags and names."
EXAMPLE = 'eval "$(resnet-jax completion bash)", in ~/.bashrc'

_SHELLS = ("bash", "zsh", "fish")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument("shell", choices=_SHELLS, help="the shell that reads the script")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Make the script of a shell."""
    import argcomplete  # noqa: PLC0415 - only this subcommand needs it

    script = argcomplete.shellcode(["resnet-jax"], shell=args.shell)
    return {"shell": args.shell, "script": script}


def show(document: dict[str, Any], console: Console) -> None:
    """Print the script."""
    console.out(document["script"], highlight=False)


def complete(parser: argparse.ArgumentParser) -> None:
    """Write the words that may follow, and end the process."""
    import argcomplete  # noqa: PLC0415

    argcomplete.autocomplete(parser)
