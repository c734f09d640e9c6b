"""Files of this host, replaced as a whole."""

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

DRAFT = ".draft"  # ends the hidden name of a file that isn't complete yet


def replace_file(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Replace the file at `path`, so that a reader or a crash sees the old one or the new one.

    Args:
        path: of the file, in a folder that exists.
        pieces: the content, in order.

    Raises:
        OSError: it can't be written; the old file is intact.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{DRAFT}")
    try:
        with temporary.open("xb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # makes the rename itself durable
    finally:
        os.close(folder)
