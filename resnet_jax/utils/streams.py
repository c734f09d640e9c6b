"""Output streams whose failure doesn't end a run.

A terminal may be closed, the reader of a pipe may end, and the disk of a log may be full. None of
these may stop a run, change its exit code or keep it from ending.
"""

import threading
from collections.abc import Callable
from typing import Any, TextIO, TypeVar

T = TypeVar("T")


class LossyStream:
    """A text stream that discards text, instead of raising an error, while it can't be written."""

    def __init__(self, stream: TextIO | None) -> None:
        """Write to `stream`; all other attributes are the stream's.

        Args:
            stream: the stream; None, as Python sets it for a stream that was closed at the start,
                discards all text.

        Attributes:
            failure: the error of the last failed write, or None.
        """
        self._stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write the text; characters that can't be encoded are escaped."""
        try:
            if self._stream is not None:
                self._stream.write(text)
        except UnicodeEncodeError:
            self.write(text.encode("ascii", "backslashreplace").decode("ascii"))
        except OSError as error:
            self.failure = error
        except ValueError:  # the stream was closed by this process
            pass
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
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
    """Escape control characters in a text, or in all texts of a JSON-like document.

    Names of files and classes, and messages of other hosts, may contain characters that control a
    terminal or reverse its text. They are escaped as in Python; line breaks and tabs are kept.
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


def run_with_timeout(action: Callable[[], object], *, timeout_s: float) -> None:
    """Run an action that may never return, and wait for it until the time-out.

    A suspended terminal, or a pipe without a reader, blocks a thread that writes to it, and threads
    that wait for the lock of such a stream.
    """
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(timeout_s)
