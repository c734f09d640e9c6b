"""Consoles that print names as they are."""

from typing import Any, TextIO

from rich.console import Console


def plain_console(stream: TextIO | None = None, **options: Any) -> Console:
    """Make a console that prints texts as they are, in lines of any length.

    By default Rich takes brackets for markup, which may be a link or an error, and replaces words
    between colons by emoji.

    Args:
        stream: where to print; None is standard output.
        options: more options of Rich's `Console`.
    """
    return Console(
        file=stream, markup=False, emoji=False, highlight=False, soft_wrap=True, **options
    )
