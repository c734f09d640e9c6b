"""The progress of a sweep on the console."""

import sys
import time
from collections.abc import Mapping
from typing import TextIO, cast

from rich.cells import cell_len, set_cell_size
from rich.console import Group
from rich.live import Live
from rich.text import Text

from resnet_jax.research.progress import Progress
from resnet_jax.utils.console import plain_console
from resnet_jax.utils.streams import LossyStream, escaped

_SECONDS_BETWEEN_LINES = 30.0  # for each run, in a log
_SHORTEST_LABEL = 8


class SweepConsole:
    """Prints the progress of runs on standard error; a context manager.

    On a terminal with cursor control, the last lines show the running runs. In a log, a pipe or on
    a dumb terminal, each run gets a line every half minute if it has progressed.
    """

    def __init__(self, labels: Mapping[str, str]) -> None:
        """Show nothing yet.

        Args:
            labels: run's name → its label on a terminal.
        """
        self._labels = labels
        self._runs: dict[str, Progress] = {}
        self._last_line: dict[str, float] = {}
        self._console = plain_console(cast(TextIO, LossyStream(sys.stderr)))
        self._live = Live(
            console=self._console,
            get_renderable=self._lines,
            transient=True,
            refresh_per_second=2,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._is_live = self._console.is_terminal and not self._console.is_dumb_terminal

    def __enter__(self) -> "SweepConsole":
        if self._is_live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """Print a permanent line."""
        self._console.print(escaped(text))

    def show(self, name: str, progress: Progress) -> None:
        """Show the progress of a run; the first call announces the run."""
        now = time.monotonic()
        if name not in self._runs:
            self._last_line[name] = now
            self.say(f"{name}: begins, or goes on")
        self._runs[name] = progress
        if not self._is_live and now - self._last_line[name] >= _SECONDS_BETWEEN_LINES:
            self._last_line[name] = now
            self.say(f"{name}: {progress}")

    def end(self, name: str, text: str) -> None:
        """Print how a run ended."""
        del self._runs[name]
        self.say(f"{name}: {text}")

    def _lines(self) -> Group:
        """A line per run, no wider than the terminal; labels are shortened."""
        lines = []
        now = list(self._runs.items())  # another thread may change the dict
        runs = [(escaped(self._labels[name]), str(progress)) for name, progress in now]
        room = self._console.width - max((cell_len(told) for _, told in runs), default=0) - 2
        longest = max((cell_len(label) for label, _ in runs), default=0)
        for label, told in runs:
            line = f"{set_cell_size(label, max(min(longest, room), _SHORTEST_LABEL))}  {told}"
            lines.append(Text(set_cell_size(line, self._console.width).rstrip(), no_wrap=True))
        return Group(*lines)
