"""A progress bar that counts images."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import IO, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from resnet_jax.utils.streams import LossyStream


@contextlib.contextmanager
def image_progress(*, transient: bool) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on standard error if that is a terminal; yield `update(done, total)`.

    A `transient` bar disappears at the end.
    """
    console = Console(file=cast(IO[str], LossyStream(sys.stderr)))
    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=transient, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
