"""Tables on the command line, of which no cell is ever cut."""

from typing import Any

import rich.table
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.text import Text

_SHORTEST = 16
"""Characters to which a column of text may be narrowed by folds within words."""


class Table(rich.table.Table):
    """A table that folds text where the terminal is too narrow for it.

    Cells are plain text, not Rich's markup. Columns that are justified to the right hold numbers.
    They, and columns that are declared with `no_wrap`, such as names to be typed, never fold: a
    table of many of them is wider than a narrow terminal. Into a pipe or a file a table is written
    as wide as its cells are. The console must have `soft_wrap`, as `main` has it.
    """

    def __init__(self, *headers: str, title: str | None = None) -> None:
        super().__init__(*headers, title=None if title is None else escape(title))

    def add_row(self, *cells: str, **options: Any) -> None:  # type: ignore[override]
        """Add a row of plain text."""
        super().add_row(*map(Text, cells), **options)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        frame = 3 * len(self.columns) + 1  # lines between columns, and a space on either side
        widths = self._widths(options.max_width - frame if console.is_terminal else None)
        for column, width in zip(self.columns, widths, strict=True):
            column.width, column.overflow = width, "fold"
        yield from super().__rich_console__(console, options.update_width(sum(widths) + frame))

    def _widths(self, room: int | None) -> list[int]:
        """Characters of each column: together at most `room`, as far as folds allow it."""
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
