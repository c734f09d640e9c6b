"""Errors that a user can act on, and their exit codes.

Raise them with one sentence that says what is wrong, where, and what to do. The command line prints
the sentence and exits with `exit_code`; a caller of the library gets a typed exception. Any other
exception is a bug of this package and keeps its traceback.
"""

import difflib
from collections.abc import Iterable

STOPPED_EARLY = 75
"""Exit code of a run that was told to stop and saved everything; it should be restarted."""


class ResnetJaxError(Exception):
    """Base class; `exit_code` follows sysexits(3) where it has a code."""

    exit_code = 70


class UsageError(ResnetJaxError):
    """The command line isn't valid: an unknown subcommand, a missing argument."""

    exit_code = 64


class DataError(ResnetJaxError):
    """Data are missing, damaged or differ from what the config says."""

    exit_code = 65


class NumericalError(ResnetJaxError):
    """A loss, gradient or parameter isn't finite."""

    exit_code = 70


class CallbackError(ResnetJaxError):
    """A callback of the caller has raised an exception, which is the cause of this error."""

    exit_code = 70


class PeerError(ResnetJaxError):
    """Another process of the job, or a device, is missing, has failed or doesn't respond."""

    exit_code = 71


class WriteError(ResnetJaxError):
    """The work directory can't be written, or belongs to another run."""

    exit_code = 73


class StoppedEarly(Exception):  # noqa: N818 - it isn't an error
    """A signal stopped the run before it had anything to save; it should be restarted."""

    exit_code = STOPPED_EARLY


class ConfigError(ResnetJaxError):
    """A config value is unknown, has the wrong type, isn't possible, or differs from the run's."""

    exit_code = 78


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` with the known word nearest to `word`; "" if none is near."""
    nearest = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
