"""Terminal output: results go to stdout, progress goes to stderr."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# Of lines in a file or a pipe, where there is no terminal to ask.
FILE_WIDTH = 110


def out() -> Console:
    """The console for results. Made anew so that a redirected stdout is respected."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = FILE_WIDTH
    return console


class Bar:
    """A progress bar on a terminal; elsewhere only the lines given to `log`, one by one."""

    def __init__(self, progress: Progress | None, console: Console, total: float, label: str):
        self._progress = progress
        self._console = console
        self._task = None if progress is None else progress.add_task(label, total=total)

    def advance(self, amount: float = 1, label: str | None = None) -> None:
        """Moves on by `amount` units of work and, if given, renames what is being done."""
        if self._progress is None or self._task is None:
            return
        if label is not None:
            self._progress.update(self._task, description=label)
        self._progress.advance(self._task, amount)

    def log(self, text: str) -> None:
        """Prints a line that stays, above the bar."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress(total: float, label: str = "") -> Iterator[Bar]:
    """A progress bar over `total` units of work, on stderr.

    Without a terminal (a pipe, a log file, CI) nothing is redrawn: only `Bar.log` prints.

    >>> with progress(total=3, label="training") as bar:
    ...     for step in range(3):
    ...         bar.advance(label=f"step {step + 1}")
    """
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield Bar(None, console, total, label)
        return
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, expand=True) as display:
        yield Bar(display, console, total, label)
