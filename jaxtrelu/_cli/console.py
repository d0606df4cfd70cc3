"""The terminal: results go to stdout, in ASCII where it lacks a character; progress to stderr."""

import codecs
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

# Of lines in a file or a pipe, where there is no terminal to ask.
FILE_WIDTH = 110
_SPELLINGS = str.maketrans(
    {
        "θ": "theta", "λ": "lambda", "±": "+-", "×": "x", "–": "-", "−": "-", "…": "...",
    }
)  # fmt: skip
_HANDLER = "jaxtrelu-spelled"


def spelled(text: str, encoding: str) -> str:
    """The text, in ASCII if the encoding lacks one of its characters.

    >>> spelled("±", "utf-8"), spelled("θ = 1 ± 2", "ascii")
    ('±', 'theta = 1 +- 2')
    """
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_SPELLINGS).encode("ascii", "backslashreplace").decode()
    return text


def spell_out(stream: TextIO) -> None:
    """Makes a stream write what its encoding lacks as `spelled` does, rather than raise.

    In the C locale Python's stdout is not strict, but raises as well: "surrogateescape" is for
    names of files that could not be decoded, which are written as the bytes that they are.
    """
    raises = getattr(stream, "errors", None) in ("strict", "surrogateescape")
    if raises and hasattr(stream, "reconfigure"):
        codecs.register_error(_HANDLER, _spell_failed)
        stream.reconfigure(errors=_HANDLER)


def _spell_failed(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character, after = error.object[error.start], error.start + 1
    try:
        return character.encode(error.encoding, "surrogateescape"), after
    except UnicodeEncodeError:
        return spelled(character, "ascii"), after


def out() -> "Console":
    """The console for results. Made anew so that a redirected stdout is respected."""
    from rich.console import Console

    class Out(Console):
        def on_broken_pipe(self) -> None:
            """Leaves it to `main`, which knows the exit status; rich would exit with 1."""
            raise BrokenPipeError

    console = Out(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = FILE_WIDTH
    return console


class Bar:
    """A progress bar on a terminal; elsewhere only the lines given to `log`, one by one."""

    def __init__(self, progress: "Progress | None", console: "Console", total: float, label: str):
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
    from rich import progress as parts
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield Bar(None, console, total, label)
        return
    columns = (
        parts.TextColumn("{task.description:<28}"),
        parts.BarColumn(bar_width=None),
        parts.MofNCompleteColumn(),
        parts.TimeElapsedColumn(),
        parts.TimeRemainingColumn(),
    )
    with parts.Progress(*columns, console=console, transient=True, expand=True) as display:
        yield Bar(display, console, total, label)
