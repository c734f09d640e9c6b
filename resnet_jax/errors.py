"""Failures a user can act on, and the exit code each one ends the process with.

Raise one of these with a single sentence that says what is wrong, where, and what to do.
The command line prints that sentence and exits with `exit_code`; a library caller gets a typed
exception. Anything else that escapes is a bug in this package and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class ResnetJaxError(Exception):
    """Base class; `exit_code` follows sysexits(3) where a code exists there."""

    exit_code = 70


class UsageError(ResnetJaxError):
    """The command line itself is wrong: unknown subcommand, missing argument."""

    exit_code = 64


class DataError(ResnetJaxError):
    """Data are missing, damaged or don't mean what the config says."""

    exit_code = 65


class NumericalError(ResnetJaxError):
    """A loss, gradient or parameter stopped being finite."""

    exit_code = 70


class PeerError(ResnetJaxError):
    """Another process of the job, or a device, is missing, has failed or doesn't answer."""

    exit_code = 71


class WriteError(ResnetJaxError):
    """The work directory can't be written, or belongs to someone else."""

    exit_code = 73


class StoppedEarly(Exception):  # noqa: N818 - it is no error
    """A signal asked the run to stop when it had nothing to save yet; it wants to be restarted."""

    exit_code = 75  # STOPPED_EARLY


class ConfigError(ResnetJaxError):
    """A config value is unknown, of the wrong type, impossible, or not the run's own."""

    exit_code = 78


STOPPED_EARLY = 75
"""Exit code of a run that was asked to stop, saved everything, and wants to be restarted."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the known word nearest to `word`, or an empty string."""
    nearest = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
