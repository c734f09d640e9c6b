"""The process of a run of `resnet-jax sweep`; it reads its job from standard input as JSON.

The argument is the sweep's config file, which is run first: it may register names of its own.
"""

import json
import os
import runpy
import sys

from resnet_jax.checkpoint.stop import StopRequest
from resnet_jax.cli.common.config_flag import CONFIG_MODULE
from resnet_jax.cli.common.exits import end_early, end_with, exit_code_of, show_progress
from resnet_jax.errors import STOPPED_EARLY
from resnet_jax.utils.malloc import configure_malloc
from resnet_jax.utils.subprocess import die_with_parent, process_age_s


def main(stop: StopRequest) -> int:
    """Train, and return the exit code as train.py does."""
    job = json.load(sys.stdin)
    if os.getppid() != job["parent"]:  # the parent was killed before `die_with_parent`
        return STOPPED_EARLY
    file, sys.argv = sys.argv[1], job["argv"]  # the command to record in summary.json

    from resnet_jax.config.io import from_json  # noqa: PLC0415 - after signals are listened for
    from resnet_jax.config.schema import streams  # noqa: PLC0415
    from resnet_jax.train.fit import FitResult, fit  # noqa: PLC0415

    def train() -> FitResult:
        runpy.run_path(file, run_name=CONFIG_MODULE)
        config = from_json(job["config"])
        configure_malloc(decoded_as_needed=streams(config))
        return fit(config, job["workdir"], stop=stop, on_hang=end_with, started_s=process_age_s())

    show_progress()
    return exit_code_of(train)


if __name__ == "__main__":
    die_with_parent()
    with StopRequest(end_early) as _stop:
        sys.exit(main(_stop))
