"""What a failed run does and says: errors of the system and of JAX as errors of this package."""

import contextlib
from collections.abc import Callable, Iterator

import jax
from etils import epath

from resnet_jax.checkpoint.stop import FailureAction
from resnet_jax.errors import ConfigError, ResnetJaxError, WriteError
from resnet_jax.utils.messages import first_line


@contextlib.contextmanager
def explained(workdir: epath.Path) -> Iterator[None]:
    """Raise errors of files and of memory as errors that say what to do.

    Raises:
        WriteError: a file of the run in `workdir` can't be written.
        ConfigError: the host or its devices have too little memory.
    """
    try:
        yield
    except OSError as error:
        raise WriteError(f"{workdir} can't be written: {error.strerror or error}.") from error
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise _out_of_memory(error) from error
        raise


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
