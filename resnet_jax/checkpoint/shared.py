"""Whether the processes of a job share the directory of their run."""

import secrets

import jax
from etils import epath

from resnet_jax.checkpoint.workdir import write_atomically
from resnet_jax.errors import WriteError
from resnet_jax.parallel.job.agreement import MAIN, all_gather_object, is_main
from resnet_jax.utils.paths import bucket_errors


def check_shared(workdir: epath.Path) -> None:
    """Prove that the processes of a job see the same directory; each of them calls this.

    Raises:
        WriteError: some don't, so that their checkpoints would be in pieces.
    """
    if jax.process_count() == 1:
        return
    token = all_gather_object(secrets.token_hex(8))[MAIN]
    seal = workdir / f".shared-probe-{token}"  # a name that no file system has an opinion about
    if is_main():
        write_atomically(seal, token)
    all_gather_object(None)  # from here on it is there
    with bucket_errors(workdir):
        blind = [number for number, sees in enumerate(all_gather_object(seal.exists())) if not sees]
        if is_main():
            seal.unlink()
    if blind:
        raise WriteError(
            f"Processes {', '.join(map(str, blind))} don't see what process 0 writes to {workdir};"
            " nothing was trained. Choose a --workdir on a file system that all hosts share, or in"
            " a bucket (gs://…)."
        )
