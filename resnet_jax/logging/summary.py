"""summary.json: what a finished run reached."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from resnet_jax.checkpoint.workdir import SUMMARY, write_atomically
from resnet_jax.errors import DataError
from resnet_jax.utils.paths import read_document


def write_summary(workdir: epath.Path, summary: dict[str, Any]) -> None:
    """Write summary.json.

    Raises:
        OSError: it can't be written.
    """
    write_atomically(workdir / SUMMARY, json.dumps(summary, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def read_summary(workdir: epath.Path) -> Iterator[dict[str, Any]]:
    """Yield the content of summary.json. An error while the content is used means damage.

    Raises:
        DataError: the file is damaged, or can't be read.
    """
    path = workdir / SUMMARY
    try:
        content = read_document(path)
        yield json.loads(content)
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror or error}).") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise DataError(
            f"{path} is damaged. Checkpoints don't depend on it: remove it and start the run again,"
            " which scores the last one anew."
        ) from None
