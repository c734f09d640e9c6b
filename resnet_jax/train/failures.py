"""What a failed run does and says: errors of the system and of JAX as errors of this package."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from etils import epath

from resnet_jax.checkpoint.stop import FailureAction
from resnet_jax.errors import ConfigError, DataError, ResnetJaxError, WriteError
from resnet_jax.utils.messages import first_line
from resnet_jax.utils.paths import is_remote


@contextlib.contextmanager
def explained(workdir: epath.Path) -> Iterator[None]:
    """Raise errors of files and of memory as errors that say what to do.

    Raises:
        WriteError: a file of the run in `workdir` can't be written.
        DataError: another file can't be read or written.
        ConfigError: the host or its devices have too little memory.
    """
    try:
        yield
    except OSError as error:
        reason, name = error.strerror or error, error.filename
        if isinstance(name, str) and not _is_inside(name, workdir):  # as read by a loss of the user
            raise DataError(
                f"{name} can't be read or written ({reason}). What {workdir} holds is intact."
            ) from error
        raise WriteError(f"{workdir} can't be written: {reason}.") from error
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise _out_of_memory(error) from error
        raise


def _is_inside(name: str, workdir: epath.Path) -> bool:
    if is_remote(workdir):
        return os.fspath(workdir).partition("://")[2] in name  # clients may leave out the scheme
    return Path(os.path.realpath(name)).is_relative_to(os.path.realpath(workdir))


def unless_taken_over(
    check_workdir: Callable[[], None], write: Callable[[], None]
) -> FailureAction:
    """Return a function that calls `write` unless another run has taken over the directory."""

    def write_if_ours(_: BaseException | None) -> None:
        with contextlib.suppress(ResnetJaxError):
            check_workdir()
            write()

    return write_if_ours


def _out_of_memory(error: Exception) -> ConfigError:
    reason = first_line(error).removeprefix("RESOURCE_EXHAUSTED: ").rstrip(".")
    return ConfigError(
        f"This host or its devices have too little memory for this run ({reason}). What was saved"
        " before is intact. A smaller batch_size, eval_batch_size or steps_per_dispatch, a larger"
        " accumulate, model.remat, mesh.fsdp and data.resident=False each take less."
    )
