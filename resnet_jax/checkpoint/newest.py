"""The newest checkpoint of a run, by the names of its files; its arrays aren't read."""

import dataclasses
import time

from etils import epath

from resnet_jax.checkpoint.workdir import CHECKPOINTS
from resnet_jax.utils.paths import bucket_errors, is_remote, modified_s


@dataclasses.dataclass(frozen=True)
class NewestCheckpoint:
    """The newest complete checkpoint of a run.

    Attributes:
        step: of the checkpoint.
        age_s: seconds since it was written; None if the file system or bucket doesn't tell.
    """

    step: int
    age_s: float | None


def newest_checkpoint(workdir: epath.Path) -> NewestCheckpoint | None:
    """The newest complete checkpoint in the directory of a run; None if there is none.

    Raises:
        OSError: the directory can't be read.
    """
    folder = workdir / CHECKPOINTS
    with bucket_errors(folder):
        names = [path.name for path in folder.iterdir()] if folder.exists() else []
        steps = sorted(int(name) for name in names if name.isdecimal() and name.isascii())
        for step in reversed(steps):
            if _is_complete(folder / str(step)):
                return NewestCheckpoint(step, age_s(folder / str(step)))
    return None


def _is_complete(checkpoint: epath.Path) -> bool:
    """Whether Orbax has written all of it: it renames a folder, and marks one in a bucket."""
    return not is_remote(checkpoint) or (checkpoint / "commit_success.txt").exists()


def age_s(path: epath.Path) -> float | None:
    """Seconds since a file or folder was written, by the clock of this host; None if unknown."""
    try:
        written = modified_s(path)
    except OSError:  # a bucket has no folders
        return None
    return None if written is None else max(0.0, time.time() - written)
