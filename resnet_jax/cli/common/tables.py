"""Tables on the command line whose cells are never truncated."""

from collections.abc import Sequence
from typing import Any

import rich.table
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

_SHORTEST = 16
"""The least width in characters to which folds within words narrow a column of text."""


class Table(rich.table.Table):
    """A table that folds text if the terminal is too narrow.

    Cells are plain text, not Rich markup. Right-justified columns, which hold numbers, and columns
    with `no_wrap`, such as names to type, never fold; a table with many of them can be wider than
    the terminal. In a pipe or a file, a table is as wide as its cells. The console must have
    `soft_wrap`, as in `main`.
    """

    def __init__(
        self,
        *headers: str,
        names: Sequence[str] = (),
        numbers: Sequence[str] = (),
        title: str | None = None,
    ) -> None:
        """Make the columns: `names` that never fold, then text, then right-justified `numbers`."""
        super().__init__(title=None if title is None else Text(title, style="table.title"))
        for header in names:
            self.add_column(header, no_wrap=True)
        for header in headers:
            self.add_column(header)
        for header in numbers:
            self.add_column(header, justify="right")

    def add_row(self, *cells: str, **options: Any) -> None:  # type: ignore[override]
        """Add a row of plain text."""
        super().add_row(*map(Text, cells), **options)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        frame = 3 * len(self.columns) + 1  # lines between columns, and a space on each side
        widths = self._widths(options.max_width - frame if console.is_terminal else None)
        for column, width in zip(self.columns, widths, strict=True):
            column.width, column.overflow = width, "fold"
        yield from super().__rich_console__(console, options.update_width(sum(widths) + frame))

    def _widths(self, room: int | None) -> list[int]:
        """The width of each column in characters; together at most `room` if folds allow it."""
        widths, between_words, within_words = [], [], []
        for column in self.columns:
            header, *cells = [str(column.header), *map(str, column.cells)]
            widths.append(max(map(cell_len, (header, *cells))))
            if column.no_wrap:
                least = widths[-1]
            elif column.justify == "right":
                least = max(_longest_word(header), *map(cell_len, cells), 1)
            else:
                least = _longest_word(header, *cells)
            between_words.append(least)
            is_text = not column.no_wrap and column.justify != "right"
            within_words.append(min(least, _SHORTEST) if is_text else least)
        for least_widths in (between_words, within_words):
            while room is not None and sum(widths) > room:
                reducible = [i for i, least in enumerate(least_widths) if widths[i] > least]
                if not reducible:
                    break
                widths[max(reducible, key=widths.__getitem__)] -= 1
        return widths


def _longest_word(*texts: str) -> int:
    return max((cell_len(word) for text in texts for word in text.split()), default=1)
