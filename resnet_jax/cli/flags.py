"""One clear line and an exit code for what a user can get wrong, instead of a traceback."""

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from resnet_jax.errors import STOPPED_EARLY, ConfigError, ResnetJaxError, UsageError, did_you_mean

_INTERRUPTED = 130  # 128 + SIGINT, as shells count


def report(error: ResnetJaxError) -> int:
    """Print the error on standard error and return its exit code."""
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def exit_code_of(run: Callable[[], Any]) -> int:
    """Run a training function; 0 if it finished, 75 if it stopped early but saved."""
    try:
        result = run()
    except ResnetJaxError as error:
        return report(error)
    except KeyboardInterrupt:
        print("interrupted; what was saved before is intact", file=sys.stderr)
        return _INTERRUPTED
    return STOPPED_EARLY if result.stopped_early else 0


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parse the command line for `absl.app.run`; exits with one line if it is wrong."""
    try:
        rest = flags.FLAGS(argv)
        # A config file that is missing makes a config that fails when it is first looked at.
        flags.FLAGS.config.to_dict()
    except ResnetJaxError as error:  # raised by the config file itself
        sys.exit(report(error))
    except flags.Error as error:
        sys.exit(report(_explain(argv, str(error))))
    except OSError as error:
        if "No such file" not in str(error):  # the file is there, and has an error of its own
            raise
        sys.exit(report(ConfigError(f"--config: there is no file {_config_file(argv)}.")))
    except (AttributeError, KeyError, TypeError, ValueError):
        unknown = _unknown_field(argv)
        if unknown is None:
            raise
        sys.exit(report(unknown))
    return rest


def _config_file(argv: Sequence[str]) -> str:
    """The file's name in `--config FILE:ARGUMENT` or `--config=FILE:ARGUMENT`."""
    line = " ".join(argv)
    found = re.search(r"--?config[= ]([^ :]+)", line)
    return found[1] if found else line


def _explain(argv: Sequence[str], message: str) -> ResnetJaxError:
    line = re.sub(r"\s+", " ", message.strip())
    if "--config." in line:
        return _unknown_field(argv) or ConfigError(line)
    return UsageError(f"{line} (python {argv[0]} --help lists the flags)")


def _unknown_field(argv: Sequence[str]) -> ConfigError | None:
    """The first `--config.NAME` that no config has."""
    from resnet_jax.train.config import default_config, flatten  # noqa: PLC0415 - needs JAX

    known = flatten(default_config())
    for argument in argv[1:]:
        found = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if found and found[1] not in known:
            hint = did_you_mean(found[1], known)
            return ConfigError(f"There is no config field {found[1]!r}.{hint}")
    return None
