"""Flags that name a picture to write."""

from pathlib import Path

from resnet_jax.errors import UsageError, WriteError

SUFFIXES = (".png", ".pdf", ".svg")


def check_picture(flag: str, path: Path) -> None:
    """Check the file of a flag before anything is computed.

    Raises:
        UsageError: no picture is written in a file of that name.
        WriteError: the folder doesn't exist.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{flag} is {path}; its name must end in {', '.join(SUFFIXES)}.")
    if not path.parent.is_dir():
        raise WriteError(f"{flag}: there is no folder {path.parent}.")
