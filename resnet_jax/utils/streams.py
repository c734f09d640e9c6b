"""Output that may get lost: what it tells of goes on without it.

A terminal is closed, the reader of a pipe ends, the disk that holds a log is full. None of that is
a reason to lose a run, to end with another exit code, or not to end at all.
"""

import threading
from collections.abc import Callable
from typing import Any, TextIO, TypeVar

T = TypeVar("T")


class LossyStream:
    """A text stream that falls silent, instead of raising an error, while it can't be written."""

    def __init__(self, stream: TextIO | None) -> None:
        """Write to `stream`; None, as Python has it for one that was closed at the start, is mute.

        Everything but writing is the stream's own.

        Attributes:
            failure: the error of the last write that failed, or None.
        """
        self._stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write what can be written of it; what can't be encoded, in escapes."""
        try:
            if self._stream is not None:
                self._stream.write(text)
        except UnicodeEncodeError:
            self.write(text.encode("ascii", "backslashreplace").decode("ascii"))
        except OSError as error:
            self.failure = error
        except ValueError:  # it was closed here
            pass
        return len(text)

    def flush(self) -> None:
        """Send on what was written."""
        try:
            if self._stream is not None:
                self._stream.flush()
        except OSError as error:
            self.failure = error
        except ValueError:
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def escaped(value: T) -> T:
    """Text for a terminal, or a JSON-like document of such texts.

    Names of files and classes, and what other hosts say, may hold characters that steer a terminal
    or reverse its text. They become escapes, as Python writes them; line breaks and tabs stay.
    """
    result: Any = value
    if isinstance(value, str) and not value.isprintable():
        result = "".join(
            c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode("ascii")
            for c in value
        )
    elif isinstance(value, dict):
        result = {escaped(key): escaped(entry) for key, entry in value.items()}
    elif isinstance(value, list | tuple):
        result = [escaped(entry) for entry in value]
    return result


def briefly(action: Callable[[], object], *, timeout_s: float) -> None:
    """Do something that may never return, and wait for it no longer than some seconds.

    A terminal that was halted, or a pipe that nobody reads, blocks who writes to it, and who waits
    for the lock of such a stream.
    """
    acting = threading.Thread(target=action, daemon=True)
    acting.start()
    acting.join(timeout_s)
