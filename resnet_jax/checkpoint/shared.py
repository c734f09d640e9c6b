"""Checks that the processes of a job share the directory of their run."""

import secrets

import jax
from etils import epath

from resnet_jax.checkpoint.workdir import write_atomically
from resnet_jax.errors import WriteError
from resnet_jax.parallel.job.agreement import MAIN, all_gather_object, is_main
from resnet_jax.utils.paths import bucket_errors


def check_shared(workdir: epath.Path) -> None:
    """Check that all processes of a job see the same directory; every process must call this.

    Raises:
        WriteError: some processes don't; their parts of the checkpoints would be missing.
    """
    if jax.process_count() == 1:
        return
    token = all_gather_object(secrets.token_hex(8))[MAIN]
    probe = workdir / f".shared-probe-{token}"
    if is_main():
        write_atomically(probe, token)
    all_gather_object(None)  # the file exists from here on
    with bucket_errors(workdir):
        seen = all_gather_object(probe.exists())
        if is_main():
            probe.unlink()
    if blind := [str(number) for number, sees in enumerate(seen) if not sees]:
        raise WriteError(
            f"Processes {', '.join(blind)} don't see what process 0 writes to {workdir};"
            " nothing was trained. Choose a --workdir on a file system that all hosts share, or in"
            " a bucket (gs://…)."
        )
