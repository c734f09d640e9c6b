"""Files of this host, replaced as a whole."""

import os
import tempfile
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
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=DRAFT)
    try:
        with os.fdopen(handle, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # makes the rename itself durable
    finally:
        os.close(folder)
