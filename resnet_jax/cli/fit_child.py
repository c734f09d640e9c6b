"""The process of a run of `resnet-jax sweep`; it reads its job from standard input as JSON."""

import json
import os
import sys

from resnet_jax.checkpoint.stop import StopRequest
from resnet_jax.cli.common.exits import end_early, end_with, exit_code_of, show_progress
from resnet_jax.errors import STOPPED_EARLY
from resnet_jax.utils.malloc import configure_malloc
from resnet_jax.utils.subprocess import die_with_parent, process_age_s


def main(stop: StopRequest) -> int:
    """Train, and return the exit code as train.py does."""
    job = json.load(sys.stdin)
    if os.getppid() != job["parent"]:  # the parent was killed before `die_with_parent`
        return STOPPED_EARLY
    sys.argv = job["argv"]  # the command to record in summary.json

    from resnet_jax.config.io import from_json  # noqa: PLC0415 - after signals are listened for
    from resnet_jax.config.schema import streams  # noqa: PLC0415
    from resnet_jax.train.fit import fit  # noqa: PLC0415

    config = from_json(job["config"])
    configure_malloc(decoded_as_needed=streams(config))
    show_progress()
    return exit_code_of(
        lambda: fit(config, job["workdir"], stop=stop, on_hang=end_with, started_s=process_age_s())
    )


if __name__ == "__main__":
    die_with_parent()
    with StopRequest(end_early) as _stop:
        sys.exit(main(_stop))
