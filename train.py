"""Train a network: python train.py --config=configs/digits.py --workdir=runs/digits

Any field of the config can be overridden: --config.model.name=resnet56 --config.duration=40
"""

from absl import app, flags
from ml_collections import ConfigDict

from resnet_jax.checkpoint.stop import StopRequest
from resnet_jax.cli.common.config_flag import define_config_flag, parse_flags
from resnet_jax.cli.common.exits import end_early, end_with, exit_code_of, show_progress
from resnet_jax.errors import UsageError
from resnet_jax.utils.compilation_cache import enable_compilation_cache
from resnet_jax.utils.malloc import configure_malloc
from resnet_jax.utils.subprocess import process_age_s

_CONFIG = define_config_flag(
    "file that makes the config, with an optional argument: FILE.py:ARGUMENT"
)
_WORKDIR = flags.DEFINE_string("workdir", None, "directory of the run, to begin or to go on with")
_STOP_AT_STEP = flags.DEFINE_integer(
    "stop_at_step", None, "save and exit with code 75 after this step"
)
_PROFILE = flags.DEFINE_string(
    "profile", None, "START:STOP, the first and the last training step to trace, from 1"
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, if no scheduler tells where it is"
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "processes of this job")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "number of this process, from 0")
_COORDINATOR_TIMEOUT_S = flags.DEFINE_float(
    "coordinator_timeout_s", 300.0, "seconds to wait for the other processes", lower_bound=1.0
)
_STOP = StopRequest(end_early)
flags.mark_flags_as_required(["config", "workdir"])


def parse(argv: list[str]) -> list[str]:
    """Parse the command line and run the config file, which a signal may interrupt."""
    with _STOP.interrupt_immediately():
        return parse_flags(argv)


def main(argv: list[str]) -> int:
    """Train, and return the exit code."""
    data = _CONFIG.value.get("data")
    crops = isinstance(data, ConfigDict) and bool(data.get("random_crop_area"))
    configure_malloc(decoded_as_needed=crops)
    enable_compilation_cache()
    # After the flags, so that --help and typos cost nothing.
    import resnet_jax  # noqa: PLC0415
    from resnet_jax.parallel.job.cluster import connected, detect_cluster  # noqa: PLC0415
    from resnet_jax.train.profile import parse_steps  # noqa: PLC0415

    def train() -> resnet_jax.FitResult:
        if argv[1:]:
            raise UsageError(f"{argv[1]!r} isn't a flag (python train.py --help lists them).")
        if not _WORKDIR.value:
            raise UsageError("--workdir is empty; it names the directory of the run.")
        profile = None if _PROFILE.value is None else parse_steps(_PROFILE.value)
        job = detect_cluster(
            coordinator=_COORDINATOR.value,
            processes=_NUM_PROCESSES.value,
            process=_PROCESS_ID.value,
        )
        with connected(job, timeout_s=_COORDINATOR_TIMEOUT_S.value, end=end_with):
            return resnet_jax.fit(
                _CONFIG.value,
                _WORKDIR.value,
                stop_at_step=_STOP_AT_STEP.value,
                profile=profile,
                stop=_STOP,
                on_hang=end_with,
                started_s=process_age_s(),
            )

    show_progress()
    return exit_code_of(train)


if __name__ == "__main__":
    with _STOP:  # from the start: Ctrl-C is no crash while libraries are imported either
        app.run(main, flags_parser=parse)
